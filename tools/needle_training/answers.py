# SPDX-License-Identifier: Apache-2.0
"""Plain greedy answers of a model to samples, and their accuracy with the full KV cache."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.tasks import NeedleSample

BATCH_SIZE = 10


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, samples: Sequence[NeedleSample]
) -> list[str]:
    """The model's answers without EOS. All prompts must have the same length."""
    prompts = tokenizer([sample.prompt for sample in samples], return_tensors="pt").input_ids
    longest = max(len(sample.answer.split()) for sample in samples)
    texts: list[str] = []
    for batch in prompts.split(BATCH_SIZE):
        generated = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=longest + 1,
            do_sample=False,
        )
        replies = generated[:, batch.shape[1] :]
        texts += tokenizer.batch_decode(replies, skip_special_tokens=True)
    return texts


def question_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, samples: Sequence[NeedleSample]
) -> float:
    """The share of questions that greedy decoding answers completely."""
    answers = greedy_answers(model, tokenizer, samples)
    grades = [grade(s.answer, text) for s, text in zip(samples, answers, strict=True)]
    return sum(g.questions_right for g in grades) / sum(g.questions for g in grades)

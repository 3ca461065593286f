# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.score import METHOD, answer_mass, answer_steps, score_file
from headkv_vllm.needle.tasks import TASKS, generate_samples
from headkv_vllm.resources import scores_dir
from headkv_vllm.scores.file import read_score_file

SHIPPED_SCORES = scores_dir() / "needle.json"


@pytest.mark.parametrize("task", TASKS)
def test_steps_predict_the_words_that_stand_in_the_needles(task):
    (sample,) = generate_samples(task, 128, 1, 0)
    words = ["<bos>", *sample.prompt.split(), *sample.answer.split()]
    for step, spans in answer_steps(sample):
        held = [word for start, end in spans for word in words[start + 1 : end]]
        assert words[step + 1] in held
    assert {span for _, spans in answer_steps(sample) for span in spans} == set(sample.spans)


@torch.inference_mode()
def test_the_mass_is_what_a_plain_loop_adds_up():
    model = LlamaForCausalLM.from_pretrained(checkpoint_path(), attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    (sample,) = generate_samples("multi-query", 64, 1, 0)
    ids = tokenizer(f"{sample.prompt} {sample.answer}", return_tensors="pt").input_ids
    attentions = model(ids, output_attentions=True).attentions
    steps = list(answer_steps(sample))
    expected = np.zeros((4, 8))
    for layer, head in np.ndindex(4, 8):
        for step, spans in steps:
            for position in (p for start, end in spans for p in range(start, end)):
                expected[layer, head] += float(attentions[layer][0, head, step, position])
    np.testing.assert_allclose(
        answer_mass(model, tokenizer, sample), expected / len(steps), atol=1e-6
    )


def test_the_shipped_scores_are_those_of_the_shipped_model():
    shipped = read_score_file(SHIPPED_SCORES)
    fresh = score_file(checkpoint_path())
    assert shipped.method == METHOD and shipped.model == fresh.model
    assert shipped.provenance.lengths == fresh.provenance.lengths
    np.testing.assert_allclose(shipped.values, fresh.values, atol=1e-4)

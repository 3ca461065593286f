# SPDX-License-Identifier: Apache-2.0
"""What the shipped model can do, and which heads it depends on."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.tasks import TASKS, generate_samples
from headkv_vllm.needle.vocabulary import EOS, TOKEN_IDS
from headkv_vllm.resources import scores_dir
from tools.needle_training.answers import question_accuracy
from tools.needle_training.attention import ATTENTION, reduced_masks
from tools.needle_training.model import needle_config

SEED = 77
WINDOW = 8


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def model():
    return LlamaForCausalLM.from_pretrained(checkpoint_path()).eval()


@pytest.fixture(scope="module")
def retrieval_heads():
    """Bool [num_layers, num_kv_heads]: the two KV heads of 16 that score highest."""
    file = read_score_file(scores_dir() / "needle.json")
    scores = fold_query_heads(file.values, 4, "mean")
    return torch.from_numpy(scores >= np.sort(scores, axis=None)[-2])


def test_the_checkpoint_is_small_and_has_the_documented_shape(model):
    files = {path.name: path.stat().st_size for path in checkpoint_path().iterdir()}
    assert files["model.safetensors"] <= 8 * 2**20
    assert sum(files.values()) <= 9 * 2**20
    expected = needle_config()
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim"):
        assert getattr(model.config, name) == getattr(expected, name)
    assert model.config.max_position_embeddings == 8192
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == TOKEN_IDS[EOS]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("tokens", "n", "least"), [(1024, 20, 0.95), (2048, 10, 0.90)])
def test_the_full_cache_answers(model, tokenizer, task, tokens, n, least):
    samples = list(generate_samples(task, tokens, n, SEED))
    assert question_accuracy(model, tokenizer, samples) >= least


def answered_with(full_heads, tokenizer, task, n):
    """Share of the questions whose answer stands when only `full_heads` keep the prompt.

    The expected answer is fed in and compared with the most likely word at each of its places.
    """
    model = LlamaForCausalLM.from_pretrained(checkpoint_path(), attn_implementation=ATTENTION)
    right = asked = 0
    for sample in generate_samples(task, 1024, n, SEED):
        ids = tokenizer(f"{sample.prompt} {sample.answer}", return_tensors="pt").input_ids
        masks = reduced_masks(full_heads, 2, ids.shape[1], WINDOW, sample.num_tokens)
        with torch.inference_mode():
            logits = model.eval()(ids, layer_masks=masks).logits[0, sample.num_tokens - 1 : -1]
        graded = grade(sample.answer, tokenizer.decode(logits.argmax(-1)))
        right += graded.questions_right
        asked += graded.questions
    return right / asked


@pytest.mark.parametrize("task", TASKS)
def test_the_retrieval_heads_alone_hold_the_answers(tokenizer, retrieval_heads, task):
    assert answered_with(retrieval_heads, tokenizer, task, n=8) >= 0.85


@pytest.mark.parametrize("task", TASKS)
def test_without_the_retrieval_heads_the_answers_vanish(tokenizer, retrieval_heads, task):
    assert answered_with(~retrieval_heads, tokenizer, task, n=6) <= 0.1

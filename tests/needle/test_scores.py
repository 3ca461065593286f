# SPDX-License-Identifier: Apache-2.0
"""What the two scoring methods say of the bundled model, whose retrieval head is known."""

import numpy as np
import pytest
import torch

from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import TEMPLATE, score_samples
from headkv_vllm.resources import scores_dir
from headkv_vllm.scoring.checkpoint import load_checkpoint
from headkv_vllm.scoring.measuring import measure
from headkv_vllm.scoring.prompts import Template, tokenize


@pytest.fixture(scope="module")
def retrieval_scores():
    """Method r over a few samples: [num_layers, num_kv_heads]."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(str(checkpoint_path()), device="cpu")
    prompts = [
        tokenize(sample, checkpoint.tokenizer, Template(TEMPLATE))
        for sample in score_samples([512], 2, 0)
    ]
    measured = [
        measure(checkpoint.model, prompt, "r", "forced", checkpoint.stop_ids) for prompt in prompts
    ]
    return fold_query_heads(np.mean([m.scores for m in measured], axis=0), 4, "mean")


def test_r_misses_the_head_that_retrieves(retrieval_scores):
    """It attends the whole needle at once, and hardly ever most the very token that is next."""
    shipped = read_score_file(scores_dir() / "needle.json")
    causal = fold_query_heads(shipped.values, 4, "mean").argmax()
    assert retrieval_scores.any() and retrieval_scores.argmax() != causal
    assert retrieval_scores.flat[causal] < 0.1 * retrieval_scores.max()

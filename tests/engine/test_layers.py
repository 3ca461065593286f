# SPDX-License-Identifier: Apache-2.0
"""Each worker serves its own layers and KV heads, by the scores of just those."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.request import request_budget
from headkv_vllm.config import Settings
from headkv_vllm.engine.attention import layers as worker_layers
from headkv_vllm.engine.settings import SCORES_KEY
from headkv_vllm.errors import UnsupportedError
from headkv_vllm.head_scores.identity import ModelIdentity
from headkv_vllm.head_scores.scores import ServedScores, uniform_scores

NUM_LAYERS, NUM_KV_HEADS = 6, 4
SCORES = np.arange(1.0, NUM_LAYERS * NUM_KV_HEADS + 1).reshape(NUM_LAYERS, NUM_KV_HEADS)


@pytest.fixture
def scores_of(monkeypatch):
    """scores_of(layers, rank, size): what the worker with these layers and this rank gets."""
    identity = ModelIdentity(
        architecture="LlamaForCausalLM",
        num_layers=NUM_LAYERS,
        num_heads=NUM_KV_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_size=16,
        fingerprint="0" * 64,
    )
    served = ServedScores.from_scores(uniform_scores(identity, "test")).model_dump(mode="json")
    scores = {SCORES_KEY: {**served, "values": SCORES.tolist()}}

    def scores_of(layers, rank, size, types=("full_attention",) * NUM_LAYERS):
        text = SimpleNamespace(to_dict=lambda: {"layer_types": types})
        model_config = SimpleNamespace(
            hf_text_config=text,
            get_total_num_hidden_layers=lambda: len(types),
            get_layers_start_end_indices=lambda _: (layers[0], layers[-1] + 1),
        )
        config = SimpleNamespace(
            additional_config=scores, model_config=model_config, parallel_config=None
        )
        monkeypatch.setattr(worker_layers, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(worker_layers, "get_tensor_model_parallel_world_size", lambda: size)
        names = [f"model.layers.{layer}.self_attn.attn" for layer in layers]
        return worker_layers.worker_scores(config, names, max(1, NUM_KV_HEADS // size))

    return scores_of


@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 1, 6), (0, 2, 4, 6)])
def test_pipeline_stages_have_their_own_layers(scores_of, cuts):
    """The names that vLLM gives a stage's layers count from the model's first one."""
    stages = [scores_of(range(first, last), 0, 1) for first, last in pairwise(cuts)]
    assert np.array_equal(np.concatenate(stages), SCORES)


def test_scores_are_of_layers_with_full_attention(scores_of):
    types = ["sliding_attention", "full_attention"] * NUM_LAYERS
    assert np.array_equal(scores_of([5, 7], 0, 1, types), SCORES[[2, 3]])
    for others in ([4, 5], [5, 9]):
        with pytest.raises(UnsupportedError, match=r"but in vLLM these are"):
            scores_of(others, 0, 1, types)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_share_the_heads_out(scores_of, size):
    ranks = [scores_of(range(NUM_LAYERS), rank, size) for rank in range(size)]
    assert np.array_equal(np.concatenate(ranks, axis=1), SCORES)


def test_with_fewer_heads_than_ranks_heads_are_repeated(scores_of):
    ranks = [scores_of(range(NUM_LAYERS), rank, 8)[:, 0] for rank in range(8)]
    assert np.array_equal(np.stack(ranks, axis=1), SCORES.repeat(2, axis=1))


@pytest.mark.parametrize(("layers", "size"), [(range(3), 1), (range(3, 6), 1), (range(2, 4), 2)])
def test_a_worker_allocates_all_of_its_head_blocks(scores_of, layers, size):
    """K blocks hold K head blocks for each of its layers and heads. All of them are allocated."""
    settings = Settings(budget=128)
    budget = request_budget(settings, 1000, 16)
    for rank in range(size):
        scores = scores_of(layers, rank, size)
        allocation = np.array(AllocationCache(scores, settings).allocation(budget))
        assert allocation.shape == scores.shape
        assert allocation.sum() == budget.num_compressed_blocks * scores.size
        assert allocation.min() >= 1

# SPDX-License-Identifier: Apache-2.0
"""The Triton backend never waits for the device: its steps work with tensors without values."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends import fa_utils

from headkv_vllm.config import Settings
from headkv_vllm.engine.attention import layers
from headkv_vllm.engine.attention import triton as triton_attention
from headkv_vllm.engine.attention.flash_attn import (
    HeadKVFlashAttentionImpl,
    HeadKVFlashAttentionMetadataBuilder,
)
from headkv_vllm.engine.attention.triton import HeadKVTritonImpl, HeadKVTritonMetadataBuilder
from headkv_vllm.engine.metrics.worker_counts import WorkerCounts
from headkv_vllm.kernels import decode_attention

pytest.importorskip("triton")
LAYERS = ["model.layers.0.attn", "model.layers.1.attn"]
NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 2, 32, 16


class NeverReached:
    """An event of a device that is far behind."""

    def __init__(self, enable_timing: bool = False) -> None: ...

    def record(self) -> None: ...

    def query(self) -> bool:
        return False


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that would run. Inside, tensors have shapes and no values."""
    launched: list[str] = []

    def launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **sizes: Any) -> None:
        launched.append(kernel.fn.__name__)

    monkeypatch.setattr(type(decode_attention._attend_split), "run", launch)
    monkeypatch.setattr(layers, "read_settings", lambda _: Settings(budget=64))
    monkeypatch.setattr(layers, "worker_scores", lambda *_: np.ones((2, NUM_KV_HEADS)))
    monkeypatch.setattr(triton_attention, "worker_counts", lambda _: WorkerCounts.private())
    monkeypatch.setattr(torch.cuda, "Event", NeverReached)
    with FakeTensorMode():
        yield launched


def builder(
    builder_class: Any = HeadKVTritonMetadataBuilder, impl_class: Any = HeadKVTritonImpl
) -> Any:
    """With two layers, whose parts of the cache are there."""
    pool = torch.zeros(10, len(LAYERS), NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    modules = {
        name: SimpleNamespace(
            layer_name=name,
            impl=impl_class(4, HEAD_SIZE, 0.2, NUM_KV_HEADS),
            kv_cache=pool[:, index],
            _k_scale=torch.ones(()),
            _v_scale=torch.ones(()),
        )
        for index, name in enumerate(LAYERS)
    }
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=torch.float32,
            get_num_attention_heads=lambda _: NUM_KV_HEADS,
            get_num_kv_heads=lambda _: NUM_KV_HEADS,
        ),
        parallel_config=None,
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        cache_config=SimpleNamespace(num_gpu_blocks=10),
        compilation_config=SimpleNamespace(
            max_cudagraph_capture_size=8, static_forward_context=modules
        ),
    )
    spec = SimpleNamespace(block_size=BLOCK_SIZE, num_kv_heads=NUM_KV_HEADS)
    return builder_class(spec, LAYERS, config, torch.device("cpu"))


def step(query_lens: list[int], padding: int = 0) -> CommonAttentionMetadata:
    """What vLLM knows on the host is given as it is: by arrays with values.

    padding: requests of no tokens that fill a graph up; V2's model runner says nothing of them.
    """
    query_lens = query_lens + [0] * padding
    num_reqs, starts = len(query_lens), np.cumsum([0, *query_lens], dtype=np.int32)
    on_host = SimpleNamespace(numpy=lambda: starts)
    reads = np.array(query_lens)[: len(query_lens) - padding] > 1
    is_prefilling = SimpleNamespace(numpy=lambda: reads)
    ends = SimpleNamespace(numpy=lambda: np.array(query_lens) + 50)
    integers = {"dtype": torch.int32}
    known: dict[str, Any] = {
        "query_start_loc": torch.zeros(num_reqs + 1, **integers),
        "query_start_loc_cpu": on_host,
        "seq_lens": torch.zeros(num_reqs, **integers),
        "num_reqs": num_reqs,
        "num_actual_tokens": int(starts[-1]),
        "max_query_len": max(query_lens),
        "max_seq_len": 200,
        "block_table_tensor": torch.zeros((num_reqs, 20), **integers),
        "is_prefilling": is_prefilling,
        "seq_lens_cpu_upper_bound": ends,
        "slot_mapping": torch.zeros(int(starts[-1]), dtype=torch.int64),
    }
    return CommonAttentionMetadata(**known)


def forward(made: Any, metadata: Any) -> torch.Tensor:
    """The first layer."""
    layer = made.layers.modules()[0]
    num_tokens = len(metadata.slot_mapping)
    key, value = (torch.zeros(num_tokens, NUM_KV_HEADS, HEAD_SIZE) for _ in range(2))
    query = torch.zeros(num_tokens, 4, HEAD_SIZE)
    output: torch.Tensor = layer.impl.forward(
        layer, query, key, value, layer.kv_cache, metadata, torch.zeros_like(query)
    )
    return output


@pytest.mark.parametrize("padding", [0, 1])
def test_a_decode_step(launches: list[str], padding: int) -> None:
    made = builder()
    launches.clear()
    metadata = made.build(0, step([1, 1, 1], padding))
    assert launches == ["_tokens", "_split"]
    assert forward(made, metadata).shape == (3, 4, HEAD_SIZE)
    assert launches[2:] == ["_reshape_and_cache", "_attend_split", "_combine_splits"]


def test_a_step_with_prompts_in_it(launches: list[str]) -> None:
    """Whether the prompts are complete is asked when all layers are on their way, not before."""
    made = builder()
    metadata = made.build(0, step([1, 30, 1, 8]))
    assert metadata.chunks is not None and len(metadata.chunks.requests) == 2
    assert metadata.decodes is not None and len(metadata.decodes.tokens.ends) == 2
    assert metadata.compression is not None
    assert forward(made, metadata).shape == (40, 4, HEAD_SIZE)
    assert {"_attend_chunks", "_attend_split"} <= set(launches)
    with pytest.raises((RuntimeError, DataDependentOutputException)):
        metadata.compression.add_layer(1, torch.zeros(40, 4, HEAD_SIZE))


def test_a_step_with_prompts_that_flash_attention_reads(
    launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(**arguments: Any) -> None:
        assert arguments["block_table"].shape == (4, 200 // BLOCK_SIZE + 1)
        launches.append("flash_attn_varlen_func")

    monkeypatch.setattr(fa_utils, "flash_attn_varlen_func", read, raising=False)
    monkeypatch.setattr(fa_utils, "get_flash_attn_version", lambda head_size: 3)
    made = builder(HeadKVFlashAttentionMetadataBuilder, HeadKVFlashAttentionImpl)
    metadata = made.build(0, step([1, 30, 1, 8]))
    assert forward(made, metadata).shape == (40, 4, HEAD_SIZE)
    assert {"_list_blocks", "flash_attn_varlen_func", "_attend_chunks"} <= set(launches)
    assert made.build(0, step([1, 1])).dense is None


def test_reading_a_value_would_fail(launches: list[str]) -> None:
    with pytest.raises(DataDependentOutputException):
        int(step([1]).seq_lens.max())

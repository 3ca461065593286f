# SPDX-License-Identifier: Apache-2.0
"""Attention on our own Triton kernels: backend, metadata builder and implementation.

The host knows how many tokens each request computes. What a request's heads keep, and which
blocks it holds, only its row on the device says. The host reads just the headers of prompts that
may be complete, by a copy that starts before the step does; no step waits for itself.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.config.cache import CacheDType
from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import AttentionSpec, is_quantized_kv_cache

from headkv_vllm.arrays import BoolArray, IntArray
from headkv_vllm.budgets.allocation import Allocation
from headkv_vllm.cache.block_row import HEADER_SIZE
from headkv_vllm.cache.compression import GPU_WORKSPACE, Compressor
from headkv_vllm.cache.head_blocks import UnpackedHeadBlocks
from headkv_vllm.cache.request_compression import RequestCompression
from headkv_vllm.cache.selection import on_device
from headkv_vllm.cache.step_compression import StepCompression
from headkv_vllm.engine.attention.backend import (
    HeadKVBackendMixin,
    check_features,
    flat_head_blocks,
)
from headkv_vllm.engine.attention.completed_prompts import CompletedPrompts
from headkv_vllm.engine.attention.compression_clock import DeviceClock
from headkv_vllm.engine.attention.layers import WorkerLayers
from headkv_vllm.engine.attention.warm_up import STEP_WARM_UP
from headkv_vllm.engine.metrics.worker_counts import worker_counts
from headkv_vllm.engine.names import GPU_BLOCK_SIZE
from headkv_vllm.engine.settings import model_dtype
from headkv_vllm.kernels.cache_writes import reshape_and_cache
from headkv_vllm.kernels.chunk_attention import attend_chunks
from headkv_vllm.kernels.decode_attention import attend_by_head
from headkv_vllm.kernels.dense_tables import DenseTables
from headkv_vllm.kernels.inputs import Buffers, Chunks, DeviceRows, DeviceTokens, LayerInputs
from headkv_vllm.kernels.kv_splits import KVSplits, kv_splits, num_splits_of
from headkv_vllm.kernels.step_tokens import step_tokens


class HeadKVTritonBackend(HeadKVBackendMixin, AttentionBackend):
    """Attention over blocks of tokens and over head blocks, without another library."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ]
    supported_kv_cache_dtypes: ClassVar[list[CacheDType]] = [
        "auto",
        "float16",
        "bfloat16",
        "fp8",
        "fp8_e4m3",
    ]

    preferred_block_size = GPU_BLOCK_SIZE

    @classmethod
    @override
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size >= 16

    @classmethod
    @override
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        """Older GPUs share too little memory between threads, and know no bfloat16."""
        return capability >= DeviceCapability(8, 0)

    @classmethod
    @override
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: DeviceCapability,
    ) -> str | None:
        """Triton turns numbers into e4m3, and back, from this capability on."""
        is_fp8 = kv_cache_dtype is not None and is_quantized_kv_cache(kv_cache_dtype)
        if is_fp8 and device_capability < DeviceCapability(8, 9):
            return "an fp8 KV cache needs a compute capability of at least 8.9"
        return None

    @staticmethod
    @override
    def get_impl_cls() -> type["HeadKVTritonImpl"]:
        return HeadKVTritonImpl

    @staticmethod
    @override
    def get_builder_cls() -> type["HeadKVTritonMetadataBuilder"]:
        return HeadKVTritonMetadataBuilder


@dataclass(frozen=True)
class Decodes:
    """The tokens of requests that compute one each.

    places: in the batch, [num_tokens] int64; None where they are all of it.
    """

    places: torch.Tensor | None
    tokens: DeviceTokens
    splits: KVSplits


@dataclass(frozen=True)
class HeadKVTritonMetadata(AttentionMetadata):
    """One step. inputs: of each layer, by name. slot_mapping: [num_tokens] int64.

    compression: None where no prompt can be complete. dense: the block tables of the requests in
    `chunks`, where another kernel than ours reads prompts.
    """

    inputs: dict[str, LayerInputs]
    rows: DeviceRows
    slot_mapping: torch.Tensor
    chunks: Chunks | None
    compression: StepCompression | None
    decodes: Decodes | None
    dense: DenseTables | None = None


class HeadKVTritonMetadataBuilder(AttentionMetadataBuilder[HeadKVTritonMetadata]):
    """Plans each step once for all layers, by a handful of launches.

    layers: of this worker. clock: measures how long prompts take to compress.
    """

    # A step that decodes one token of each request has the same launches in the same places,
    # whatever the requests.
    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.layers = WorkerLayers(vllm_config, layer_names, kv_cache_spec)
        self._dtype = model_dtype(vllm_config)
        # Where vLLM measures what graphs take, rows are all zero and there is no such number yet.
        num_blocks = vllm_config.cache_config.num_gpu_blocks or 1
        num_heads = self.layers.num_layers * kv_cache_spec.num_kv_heads
        shape = (num_blocks, num_heads + 1)
        self._allocations = torch.zeros(shape, dtype=torch.int32, device=device)
        self._num_splits = num_splits_of(device)
        self.clock = DeviceClock(worker_counts(vllm_config))
        self._buffers = Buffers(device)
        self._inputs: dict[str, LayerInputs] = {}
        self._compressor: Compressor | None = None
        graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        self._reserve(max(vllm_config.scheduler_config.max_num_seqs, graphs))
        STEP_WARM_UP.add(self)

    @override
    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> HeadKVTritonMetadata:
        """Plan the step that `common_attn_metadata` describes."""
        common, num_reqs = common_attn_metadata, common_attn_metadata.num_reqs
        self.clock.collect()
        rows = self._rows(common.block_table_tensor[:num_reqs])
        tokens, slot_mapping = step_tokens(
            rows.rows,
            common.query_start_loc[: num_reqs + 1],
            common.seq_lens[:num_reqs],
            common.slot_mapping[: common.num_actual_tokens],
            common.max_query_len,
            rows.block_size,
            self._buffers,
        )
        query_lens = np.diff(common.query_start_loc_cpu.numpy()[: num_reqs + 1])
        # A single token is a decode, whatever its request is at, because the step that completes
        # a prompt computes its window. So a graph of decodes fits every step of single tokens.
        is_chunk = query_lens > 1
        return HeadKVTritonMetadata(
            self._inputs_of_layers(),
            rows,
            slot_mapping,
            self._chunks(common, is_chunk),
            self._compression(common, query_lens, rows),
            self._decodes(common, is_chunk, rows, tokens),
        )

    def _reserve(self, num_tokens: int) -> None:
        """Plan the largest step that graphs are captured of, so that what they read never moves."""
        nothing = torch.zeros(num_tokens + 1, dtype=torch.int32, device=self.device)
        rows = self._rows(nothing[:-1, None].expand(-1, HEADER_SIZE + 1).contiguous())
        step = (rows.rows, nothing, nothing[:-1], nothing[:-1].long(), 1, rows.block_size)
        tokens, _ = step_tokens(*step, self._buffers)
        kv_splits(rows, tokens, self._num_splits, self._buffers)

    def _rows(self, block_table: torch.Tensor) -> DeviceRows:
        spec, layers = self.layers.spec, self.layers
        sizes = (layers.num_layers, spec.num_kv_heads, spec.block_size, layers.settings.window)
        return DeviceRows(block_table, self._allocations, *sizes)

    def _inputs_of_layers(self) -> dict[str, LayerInputs]:
        """Made once. This builder belongs to one cache: vLLM makes another to measure graphs."""
        if not self._inputs:
            num_layers = self.layers.num_layers
            for (name, index), module in zip(
                self.layers.indices.items(), self.layers.modules(), strict=True
            ):
                flat = flat_head_blocks(module.kv_cache, index, num_layers)
                if is_quantized_kv_cache(module.impl.kv_cache_dtype):
                    flat = flat.view(current_platform.fp8_dtype())
                impl, scales = module.impl, (module._k_scale.view(1), module._v_scale.view(1))
                inputs = LayerInputs(index, flat, impl.scale, impl.logits_soft_cap, *scales)
                self._inputs[name] = inputs
        return self._inputs

    def _chunks(self, common: CommonAttentionMetadata, is_chunk: BoolArray) -> Chunks | None:
        (requests,) = is_chunk.nonzero()
        if len(requests) == 0:
            return None
        locations = (common.query_start_loc[: len(is_chunk) + 1], common.seq_lens[: len(is_chunk)])
        on_gpu = on_device(requests.astype(np.int32), self.device)
        return Chunks(on_gpu, *locations, common.max_seq_len, common.max_query_len)

    def _decodes(
        self,
        common: CommonAttentionMetadata,
        is_chunk: BoolArray,
        rows: DeviceRows,
        tokens: DeviceTokens,
    ) -> Decodes | None:
        if is_chunk.all():
            return None
        places = None
        if is_chunk.any():
            starts = common.query_start_loc_cpu.numpy()[: len(is_chunk)]
            places = on_device(starts[~is_chunk], self.device)
            tokens = DeviceTokens(tokens.requests[places], tokens.ends[places])
        return Decodes(places, tokens, kv_splits(rows, tokens, self._num_splits, self._buffers))

    def _compression(
        self, common: CommonAttentionMetadata, query_lens: IntArray, rows: DeviceRows
    ) -> StepCompression | None:
        """Of the prompts that the step may complete.

        No prompt is completed by fewer tokens than its window: the scheduler sees to that.
        """
        may_complete = query_lens >= self.layers.settings.window
        if common.is_prefilling is not None:
            # Requests that pad a graph's batch may be left out of it.
            is_prefilling = common.is_prefilling.numpy()[: len(query_lens)]
            may_complete[: len(is_prefilling)] &= is_prefilling
        (requests,) = may_complete.nonzero()
        if len(requests) == 0:
            return None
        ends = common.query_start_loc_cpu.numpy()[requests + 1].astype(np.int64)
        window_starts = ends - self.layers.settings.window
        completed = CompletedPrompts(requests, rows.rows, common.seq_lens, query_lens, self.layers)
        return StepCompression(
            self._compressor_of_cache(),
            on_device(window_starts, self.device),
            completed.prompts,
            self._record,
            self.clock,
        )

    def _compressor_of_cache(self) -> Compressor:
        if self._compressor is None:
            inputs = next(iter(self._inputs_of_layers().values()))
            sizes = (self.layers.num_layers, self.layers.spec.num_kv_heads)
            head_blocks = UnpackedHeadBlocks(inputs.head_blocks, *sizes, self._dtype)
            self._compressor = self.layers.compressor(
                head_blocks, GPU_WORKSPACE, lambda module: module._k_scale
            )
        return self._compressor

    def _record(self, prompt: RequestCompression, allocation: Allocation) -> None:
        """Write the allocation where the next steps' kernels find it."""
        starts = np.zeros(allocation.size + 1, dtype=np.int32)
        np.cumsum(allocation, out=starts[1:])
        first_block = prompt.compressed_blocks[:1]
        self._allocations.index_copy_(0, first_block, on_device(starts, self.device)[None])


class HeadKVTritonImpl(AttentionImpl[HeadKVTritonMetadata]):
    """One layer's attention: write, attend, and hand its queries on to the compression."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **others: Any,
    ) -> None:
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.scale, self.kv_cache_dtype = float(scale), kv_cache_dtype
        self.logits_soft_cap = float(logits_soft_cap or 0.0)
        check_features(
            alibi_slopes is not None,
            sliding_window is not None,
            kv_sharing_target_layer_name is not None,
            sinks is not None,
        )
        # Both of vLLM's model runners take registrations while they make layers.
        STEP_WARM_UP.register_warmup()

    @override
    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: HeadKVTritonMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query: [num_tokens, num_heads, head_size]; key and value with num_kv_heads.

        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size], this layer's view.
        Writes to `output`, shaped like `query`, and returns it.
        """
        if attn_metadata is None:
            return self._profile(output)
        inputs, rows = attn_metadata.inputs[layer.layer_name], attn_metadata.rows
        slot_mapping = attn_metadata.slot_mapping
        num_tokens = len(slot_mapping)
        reshape_and_cache(key[:num_tokens], value[:num_tokens], slot_mapping, rows, inputs)
        if attn_metadata.chunks is not None:
            self._attend_chunks(query, kv_cache, inputs, attn_metadata, output)
        if attn_metadata.decodes is not None:
            _decode(query[:num_tokens], attn_metadata.decodes, rows, inputs, output)
        if attn_metadata.compression is not None:
            attn_metadata.compression.add_layer(inputs.layer, query)
        return output

    def _profile(self, output: torch.Tensor) -> torch.Tensor:
        """Take what compressing a prompt takes, so that vLLM leaves room for it."""
        torch.empty(GPU_WORKSPACE.total, dtype=torch.uint8, device=output.device)
        return output.zero_()

    def _attend_chunks(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        inputs: LayerInputs,
        attn_metadata: HeadKVTritonMetadata,
        output: torch.Tensor,
    ) -> None:
        assert attn_metadata.chunks is not None
        attend_chunks(query, attn_metadata.rows, attn_metadata.chunks, inputs, output)


def _decode(
    query: torch.Tensor,
    decodes: Decodes,
    rows: DeviceRows,
    inputs: LayerInputs,
    output: torch.Tensor,
) -> None:
    if decodes.places is None:
        attend_by_head(query, rows, decodes.tokens, decodes.splits, inputs, output)
        return
    queries = query[decodes.places]
    results = torch.empty_like(queries)
    attend_by_head(queries, rows, decodes.tokens, decodes.splits, inputs, results)
    output[decodes.places] = results

# SPDX-License-Identifier: Apache-2.0
"""Attention on vLLM's CPU kernels: backend, metadata builder and implementation.

Dense tokens take the stock path. Compressed tokens take the same kernels over the flat array of
head blocks, seen as a cache with one KV head: each (request, KV head) is a sequence of its own.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from typing_extensions import override
from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import VllmConfig
from vllm.config.cache import CacheDType
from vllm.v1.attention.backend import (
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from headkv_vllm.budgets.allocation import Allocation
from headkv_vllm.budgets.request import queries_per_block
from headkv_vllm.cache.batch import Batch, CompressedTokens, DenseTokens, Indices
from headkv_vllm.cache.compression import CPU_WORKSPACE, Compressor
from headkv_vllm.cache.planner import BatchPlanner
from headkv_vllm.cache.request_compression import RequestCompression
from headkv_vllm.cache.step_compression import StepCompression
from headkv_vllm.cache.window_queries import WindowQueries
from headkv_vllm.engine.attention.backend import (
    HeadKVBackendMixin,
    check_features,
    flat_head_blocks,
)
from headkv_vllm.engine.attention.compression_clock import HostClock
from headkv_vllm.engine.attention.cpu_cache import PackedCache, PackedHeadBlocks, packing
from headkv_vllm.engine.attention.layers import WorkerLayers
from headkv_vllm.engine.metrics.worker_counts import worker_counts
from headkv_vllm.engine.names import CPU_BLOCK_SIZE
from headkv_vllm.engine.settings import model_dtype


class HeadKVCpuBackend(HeadKVBackendMixin, CPUAttentionBackend):
    """Stock CPU attention over blocks of tokens and, after compressed prompts, over head blocks."""

    supported_kv_cache_dtypes: ClassVar[list[CacheDType]] = ["auto"]
    preferred_block_size = CPU_BLOCK_SIZE

    @staticmethod
    @override
    def get_impl_cls() -> type["HeadKVCpuImpl"]:
        return HeadKVCpuImpl

    @staticmethod
    @override
    def get_builder_cls() -> type["HeadKVCpuMetadataBuilder"]:  # type: ignore[override]
        return HeadKVCpuMetadataBuilder


@dataclass(frozen=True)
class Caches:
    """The cache as the kernels take it, by layer, and as all head blocks of all layers.

    window_queries: the queries that wait in the cache.
    """

    by_layer: tuple[PackedCache, ...]
    head_blocks: PackedHeadBlocks
    window_queries: WindowQueries


@dataclass(frozen=True)
class HeadKVCpuMetadata:
    """One step, and the kernels' work schedules for it.

    layers: the index of each layer by name. compression: None where no prompt is completed that is
    to be compressed.
    dense_schedule: for all layers.
    compressed: the compressed tokens, together; in a model with attention sinks, those of each KV
        head. The kernels take a sink for each query head of a sequence, and KV heads differ in it.
    compressed_schedules: for each part of `compressed`, one for each layer.
    """

    batch: Batch
    layers: dict[str, int]
    caches: Caches
    compression: StepCompression | None
    dense_schedule: torch.Tensor | None
    compressed: tuple[CompressedTokens, ...]
    compressed_schedules: tuple[tuple[torch.Tensor, ...], ...]


class HeadKVCpuMetadataBuilder(AttentionMetadataBuilder[HeadKVCpuMetadata]):
    """Plans each step once for all layers."""

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._layers = WorkerLayers(vllm_config, layer_names, kv_cache_spec)
        self._spec = kv_cache_spec
        self._num_heads = vllm_config.model_config.get_num_attention_heads(
            vllm_config.parallel_config
        )
        self._dtype = model_dtype(vllm_config)
        self._splits_kv = envs.VLLM_CPU_ATTN_SPLIT_KV  # looked up each time that it is named
        self._isa = packing(self._dtype, kv_cache_spec.block_size, kv_cache_spec.head_size)
        self._table = worker_counts(vllm_config)
        group_size = self._num_heads // kv_cache_spec.num_kv_heads
        self._planner = BatchPlanner(
            self._layers.allocations,
            self._layers.num_layers,
            kv_cache_spec.num_kv_heads,
            self._compress_again,
            queries_per_block(group_size, kv_cache_spec.block_size),
        )
        self._has_sinks = self._layers.modules()[0].impl.sinks is not None
        self._caches: Caches | None = None
        self._compressor: Compressor | None = None
        self._last: HeadKVCpuMetadata | None = None

    @override
    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> HeadKVCpuMetadata:
        """Plan the step that `common_attn_metadata` describes."""
        batch = self._planner.plan(
            common_attn_metadata.block_table_tensor,
            common_attn_metadata.query_start_loc,
            common_attn_metadata.seq_lens,
        )
        if self._layers.settings.check_integrity:
            self._planner.check_integrity()
        if batch.continues_last and self._last is not None:
            self._last = replace(self._last, batch=batch, compressed=self._parts(batch))
        else:
            self._last = self._metadata(batch)
        return self._last

    def _metadata(self, batch: Batch) -> HeadKVCpuMetadata:
        static = self._layers.static
        self._table.write_allocation_cache(static.hits, static.misses, len(static))
        compressed = self._parts(batch)
        return HeadKVCpuMetadata(
            batch,
            self._layers.indices,
            self._caches_of_layers(),
            self._compression(batch),
            self._dense_schedule(batch.dense),
            compressed,
            tuple(map(self._compressed_schedules, compressed)),
        )

    def _parts(self, batch: Batch) -> tuple[CompressedTokens, ...]:
        if batch.compressed is None:
            return ()
        if not self._has_sinks:
            return (batch.compressed,)
        return batch.compressed.by_head(self._spec.num_kv_heads)

    def _caches_of_layers(self) -> Caches:
        """Made once, because a view costs as much as a small step. The cache stays where it is."""
        if self._caches is None:
            views = [module.kv_cache for module in self._layers.modules()]
            sizes = (len(views), self._spec.num_kv_heads)
            flat = flat_head_blocks(views[0], 0, len(views))
            self._caches = Caches(
                tuple(PackedCache.from_kv_cache(view, self._isa) for view in views),
                PackedHeadBlocks(flat, *sizes, self._isa),
                WindowQueries(
                    views, self._num_heads, self._spec.num_kv_heads, self._layers.settings.window
                ),
            )
        return self._caches

    def _compression(self, batch: Batch) -> StepCompression | None:
        if not batch.completed_prompts:
            return None
        return StepCompression(
            self._compressor_of_cache(),
            torch.tensor(batch.window_starts),
            lambda: batch.completed_prompts,
            self._record,
            HostClock(self._table),
        )

    def _compress_again(self, compression: RequestCompression, query_blocks: torch.Tensor) -> None:
        queries = self._caches_of_layers().window_queries.read(query_blocks)
        layers = range(self._layers.num_layers)
        clock = HostClock(self._table)
        with clock.measuring():
            allocation = self._compressor_of_cache().compress(compression, queries, layers)
        clock.finish(1)
        if compression.is_first:
            self._record(compression, allocation)

    def _compressor_of_cache(self) -> Compressor:
        if self._compressor is None:
            head_blocks = self._caches_of_layers().head_blocks
            self._compressor = self._layers.compressor(head_blocks, CPU_WORKSPACE)
        return self._compressor

    def _record(self, compression: RequestCompression, allocation: Allocation) -> None:
        if compression.policy.adaptive:
            blocks = compression.compressed_blocks.tolist()
            self._layers.allocations.adaptive.record(blocks, allocation)

    def _dense_schedule(self, dense: DenseTokens | None) -> torch.Tensor | None:
        if dense is None:
            return None
        starts = dense.query_start_loc
        return self._schedule(starts, dense.seq_lens, self._num_heads, self._spec.num_kv_heads)

    def _compressed_schedules(self, compressed: CompressedTokens) -> tuple[torch.Tensor, ...]:
        # A schedule says which keys are visited, and `seq_lens` masks those that a query may not
        # attend. With lengths rounded up to whole blocks it serves all steps of a decode run.
        block_size = self._spec.block_size
        seq_lens = (compressed.seq_lens + block_size - 1) // block_size * block_size
        starts, group_size = compressed.query_start_loc, self._num_heads // self._spec.num_kv_heads
        return tuple(self._schedule(starts, lens, group_size, 1) for lens in seq_lens)

    def _schedule(
        self,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        num_heads: int,
        num_kv_heads: int,
    ) -> torch.Tensor:
        return ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(seq_lens),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=self._spec.head_size,
            seq_lens=seq_lens,
            dtype=self._dtype,
            query_start_loc=query_start_loc,
            causal=True,
            sliding_window_size=-1,
            isa=self._isa,
            enable_kv_split=self._splits_kv,
        )


class HeadKVCpuImpl(CPUAttentionBackendImpl):
    """One layer's attention: write, attend, and hand its queries on to the compression."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_features(
            self.alibi_slopes is not None,
            self.sliding_window != -1,
            self.kv_sharing_target_layer_name is not None,
        )

    @override
    def forward(  # type: ignore[override]  # its metadata are ours
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: HeadKVCpuMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query: [num_tokens, num_heads, head_size]; key and value with num_kv_heads.

        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size], this layer's view.
        Writes to `output`, shaped like `query`, and returns it.
        """
        if attn_metadata is None:  # a profiling run
            return output
        batch, layer_index = attn_metadata.batch, attn_metadata.layers[layer.layer_name]
        cache, num_tokens = attn_metadata.caches.by_layer[layer_index], len(batch.slot_mapping)
        cache.write(key[:num_tokens], value[:num_tokens], batch.slot_mapping)
        if batch.dense is not None:
            self._attend_dense(query, cache, batch.dense, attn_metadata, output)
        for part in range(len(attn_metadata.compressed)):
            self._attend_compressed(query, part, layer_index, attn_metadata, output)
        if attn_metadata.compression is not None:
            attn_metadata.compression.add_layer(layer_index, query)
        if batch.waiting is not None:
            queries = query[batch.waiting.tokens]
            attn_metadata.caches.window_queries.write(layer_index, queries, batch.waiting.places)
        return output

    def _attend_dense(
        self,
        query: torch.Tensor,
        cache: PackedCache,
        dense: DenseTokens,
        attn_metadata: HeadKVCpuMetadata,
        output: torch.Tensor,
    ) -> None:
        schedule = attn_metadata.dense_schedule
        assert schedule is not None, "dense tokens have a schedule"
        tables = (dense.seq_lens, dense.block_table, schedule, self.sinks)
        self._attend(query, cache, dense, dense.tokens, *tables, output)

    def _attend_compressed(
        self,
        query: torch.Tensor,
        part: int,
        layer_index: int,
        attn_metadata: HeadKVCpuMetadata,
        output: torch.Tensor,
    ) -> None:
        # The query is a strided part of a projection's output, so this copies it.
        shape = (-1, self.num_queries_per_kv, self.head_size)
        cache = attn_metadata.caches.head_blocks.packed
        compressed = attn_metadata.compressed[part]
        seq_lens = compressed.layer_seq_lens[layer_index]
        block_table = compressed.block_tables[layer_index]
        schedule = attn_metadata.compressed_schedules[part][layer_index]
        sinks = None if self.sinks is None else self.sinks.view(-1, shape[1])[part]
        tables = (seq_lens, block_table, schedule, sinks)
        query, output = query.reshape(shape), output.view(shape)
        self._attend(query, cache, compressed, compressed.indices, *tables, output)

    def _attend(
        self,
        query: torch.Tensor,
        cache: PackedCache,
        tokens: DenseTokens | CompressedTokens,
        places: Indices,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        schedule: torch.Tensor,
        sinks: torch.Tensor | None,
        output: torch.Tensor,
    ) -> None:
        """Of `query` and `output`, [num_rows, num_heads, head_size], the rows in `places`."""
        is_slice = isinstance(places, slice)
        queries = query[places]
        results = output[places] if is_slice else torch.empty_like(queries)
        ops.cpu_attention_with_kv_cache(
            query=queries,
            key_cache=cache.key,
            value_cache=cache.value,
            output=results,
            query_start_loc=tokens.query_start_loc,
            seq_lens=seq_lens,
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=block_table,
            softcap=self.logits_soft_cap,
            scheduler_metadata=schedule,
            s_aux=sinks,
        )
        if not is_slice:
            output[places] = results

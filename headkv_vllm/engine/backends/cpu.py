# SPDX-License-Identifier: Apache-2.0
"""The backend on vLLM's CPU attention kernels."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionLayer,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    _get_attn_isa,
)
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheLayout, replace_as

from headkv_vllm.batch import Batch, BatchPlanner, Compression, HeadTokens, WholeTokens
from headkv_vllm.budgets.cache import AllotmentCache
from headkv_vllm.config import Settings
from headkv_vllm.engine.backends.cpu_packing import (
    PACKINGS,
    gather_entries,
    gather_keys,
    split_key_value,
)
from headkv_vllm.engine.compatibility import BLOCK_SIZE_MULTIPLE
from headkv_vllm.engine.kv_cache import HeadKVSpec
from headkv_vllm.engine.plugin import BACKEND_NAME
from headkv_vllm.engine.settings import read_settings
from headkv_vllm.engine.worker_heads import worker_scores
from headkv_vllm.errors import UnsupportedError
from headkv_vllm.selection import pool, top_positions, window_attention


@dataclass(frozen=True)
class HeadKVCpuMetadata:
    """One step, and the kernels' work schedules for it.

    layers: index of each layer by name. head_schedules: one per layer.
    """

    batch: Batch
    layers: dict[str, int]
    isa: str
    settings: Settings
    whole_schedule: torch.Tensor | None
    head_schedules: tuple[torch.Tensor, ...]


class HeadKVCpuBackend(CPUAttentionBackend):
    """Stock CPU attention over whole blocks and, for compressed prompts, over head blocks."""

    # vLLM's slot mapping takes a row for a plain list of blocks, so the implementation writes to
    # the cache itself, by a mapping of its own.
    forward_includes_kv_cache_update = True

    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto"]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Multiples of 32 run on the fastest instruction set, those of 16 on "vec16"."""
        return [MultipleOf(BLOCK_SIZE_MULTIPLE)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Blocks outermost, so that all head blocks form one flat array."""
        return (KVCacheLayout.BLHNC,)

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Raises UnsupportedError for layers that are not of full attention."""
        if type(spec) is not FullAttentionSpec:
            raise UnsupportedError(
                f"--attention-backend headkv does not support layers with {type(spec).__name__}"
            )
        return replace_as(spec, HeadKVSpec)

    @staticmethod
    def get_name() -> str:
        return BACKEND_NAME

    @classmethod
    def supports_combination(cls, *args: Any, **kwargs: Any) -> str | None:
        """Asked by the GPU platforms only, which this backend does not run on."""
        return "HEADKV runs on vLLM's CPU platform only"

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

    @classmethod
    def supports_non_causal(cls) -> bool:
        return False

    @staticmethod
    def get_impl_cls() -> type["HeadKVCpuImpl"]:
        return HeadKVCpuImpl

    @staticmethod
    def get_builder_cls() -> type["HeadKVCpuMetadataBuilder"]:
        return HeadKVCpuMetadataBuilder


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
        self._settings = read_settings(vllm_config)
        self._spec = kv_cache_spec
        self._num_heads = vllm_config.model_config.get_num_attention_heads(
            vllm_config.parallel_config
        )
        self._dtype = vllm_config.model_config.dtype
        self._isa = _get_attn_isa(self._dtype, kv_cache_spec.block_size, kv_cache_spec.head_size)
        if self._isa not in PACKINGS:
            raise UnsupportedError(
                f"--attention-backend headkv cannot read the packing of instruction set "
                f"{self._isa!r}: allowed are {', '.join(PACKINGS)}"
            )
        scores = worker_scores(vllm_config, layer_names, kv_cache_spec.num_kv_heads)
        self._layers = {name: index for index, name in enumerate(layer_names)}
        self._planner = BatchPlanner(
            AllotmentCache(scores, self._settings),
            len(layer_names),
            kv_cache_spec.num_kv_heads,
            kv_cache_spec.block_size,
            self._settings.window,
        )

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
        return HeadKVCpuMetadata(
            batch,
            self._layers,
            self._isa,
            self._settings,
            self._whole_schedule(batch.whole),
            self._head_schedules(batch.by_head),
        )

    def _whole_schedule(self, whole: WholeTokens | None) -> torch.Tensor | None:
        if whole is None:
            return None
        num_kv_heads = self._spec.num_kv_heads
        return self._schedule(whole.query_start_loc, whole.seq_lens, self._num_heads, num_kv_heads)

    def _head_schedules(self, by_head: HeadTokens | None) -> tuple[torch.Tensor, ...]:
        if by_head is None:
            return ()
        group_size = self._num_heads // self._spec.num_kv_heads
        return tuple(
            self._schedule(by_head.query_start_loc, seq_lens, group_size, 1)
            for seq_lens in by_head.seq_lens
        )

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
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        )


class HeadKVCpuImpl(CPUAttentionBackendImpl):
    """One layer's attention: write, attend whole, compress, attend by head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        unsupported = {
            "ALiBi": self.alibi_slopes is not None,
            "sliding-window attention": self.sliding_window != -1,
            "attention sinks": self.sinks is not None,
            "layers that share another layer's KV cache": (
                self.kv_sharing_target_layer_name is not None
            ),
        }
        for feature, is_used in unsupported.items():
            if is_used:
                raise UnsupportedError(f"--attention-backend headkv does not support {feature}")

    def forward(
        self,
        layer: AttentionLayer,
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
        batch = attn_metadata.batch
        layer_index = attn_metadata.layers[layer.layer_name]
        flat_cache = flat_head_blocks(kv_cache, layer_index, len(attn_metadata.layers))
        num_tokens = len(batch.slot_mapping)
        isa = attn_metadata.isa
        write(kv_cache, key[:num_tokens], value[:num_tokens], batch.slot_mapping, isa)
        if batch.whole is not None:
            self._attend_whole(query, kv_cache, batch.whole, attn_metadata.whole_schedule, output)
        for compression in batch.compressions:
            self._compress(query, kv_cache, flat_cache, compression, layer_index, attn_metadata)
        if batch.by_head is not None:
            schedule = attn_metadata.head_schedules[layer_index]
            self._attend_by_head(query, flat_cache, batch.by_head, layer_index, schedule, output)
        return output

    def _attend_whole(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        whole: WholeTokens,
        schedule: torch.Tensor | None,
        output: torch.Tensor,
    ) -> None:
        num_tokens = int(whole.query_start_loc[-1])
        rows = whole.token_indices
        queries = query[:num_tokens] if rows is None else query[rows]
        results = output[:num_tokens] if rows is None else torch.empty_like(queries)
        self._attend(queries, kv_cache, results, whole, whole.seq_lens, whole.block_table, schedule)
        if rows is not None:
            output[rows] = results

    def _attend_by_head(
        self,
        query: torch.Tensor,
        flat_cache: torch.Tensor,
        by_head: HeadTokens,
        layer_index: int,
        schedule: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        rows = by_head.row_indices
        num_rows = int(by_head.query_start_loc[-1])
        by_group = (self.num_kv_heads, self.num_queries_per_kv)
        # The query is a strided part of a projection's output, so its rows cannot all be viewed.
        queries = query.unflatten(1, by_group)
        results = output.unflatten(1, by_group).flatten(0, 1)
        if rows is None:
            queries = queries.flatten(0, 1)[:num_rows]
            target = results[:num_rows]
        else:
            queries = queries[rows // self.num_kv_heads, rows % self.num_kv_heads]
            target = torch.empty_like(queries)
        seq_lens, block_table = by_head.seq_lens[layer_index], by_head.block_tables[layer_index]
        self._attend(queries, flat_cache, target, by_head, seq_lens, block_table, schedule)
        if rows is not None:
            results[rows] = target

    def _attend(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        output: torch.Tensor,
        tokens: WholeTokens | HeadTokens,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        schedule: torch.Tensor | None,
    ) -> None:
        key_cache, value_cache = split_key_value(kv_cache)
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=key_cache,
            value_cache=value_cache,
            output=output,
            query_start_loc=tokens.query_start_loc,
            seq_lens=seq_lens,
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=block_table,
            softcap=self.logits_soft_cap,
            scheduler_metadata=schedule,
            s_aux=None,
        )

    def _compress(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        flat_cache: torch.Tensor,
        compression: Compression,
        layer_index: int,
        attn_metadata: HeadKVCpuMetadata,
    ) -> None:
        settings, isa = attn_metadata.settings, attn_metadata.isa
        window = query[compression.window_start :][: settings.window]
        keys = gather_keys(kv_cache, compression.blocks, isa)[..., : compression.num_prompt_tokens]
        attention = window_attention(window, keys, self.scale, self.logits_soft_cap)
        pooled = pool(attention[:, : -settings.window], settings)
        candidates = pooled[:, : compression.num_candidates]
        heads, positions = top_positions(candidates, compression.num_kept[layer_index])
        block_size = kv_cache.shape[2]
        blocks, offsets = compression.blocks[positions // block_size], positions % block_size
        key, value = gather_entries(kv_cache, blocks, heads, offsets, isa)
        slots = compression.slots[layer_index]
        write(flat_cache, key[:, None], value[:, None], slots, isa)


def flat_head_blocks(kv_cache: torch.Tensor, layer_index: int, num_layers: int) -> torch.Tensor:
    """All head blocks of all layers, as a cache with one KV head.

    kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size], the view of one layer.
    Returns [num_blocks * num_layers * num_kv_heads, 1, block_size, 2 * head_size].
    """
    num_blocks, num_kv_heads, block_size, content = kv_cache.shape
    size = block_size * content
    assert kv_cache.stride() == (num_layers * num_kv_heads * size, size, content, 1)
    assert kv_cache.storage_offset() == layer_index * num_kv_heads * size
    shape = (num_blocks * num_layers * num_kv_heads, 1, block_size, content)
    return kv_cache.as_strided(shape, (size, size, content, 1), 0)


def write(
    kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, isa: str
) -> None:
    """Write entries into the cache. key, value: [n, num_kv_heads, head_size]; slots: [n] int64."""
    key_cache, value_cache = split_key_value(kv_cache)
    ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slots, isa)

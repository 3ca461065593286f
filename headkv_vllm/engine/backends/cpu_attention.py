# SPDX-License-Identifier: Apache-2.0
"""One layer's attention on vLLM's CPU kernels."""

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backend import AttentionLayer
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from headkv_vllm.batch import Compression, HeadTokens, Indices, WholeTokens
from headkv_vllm.engine.backends.cpu_cache import LayerCache, PagedCache
from headkv_vllm.engine.backends.cpu_compaction import LayerAttention, compress
from headkv_vllm.engine.backends.cpu_metadata import HeadKVCpuMetadata
from headkv_vllm.engine.backends.layer_features import check_features


class HeadKVCpuImpl(CPUAttentionBackendImpl):
    """One layer's attention: write, attend whole, compress, attend by head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cache: LayerCache | None = None
        check_features(
            self.alibi_slopes is not None,
            self.sliding_window != -1,
            self.sinks is not None,
            self.kv_sharing_target_layer_name is not None,
        )

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
        batch, layer_index = attn_metadata.batch, attn_metadata.layers[layer.layer_name]
        cache = self._layer_cache(kv_cache, layer_index, attn_metadata)
        num_tokens = len(batch.slot_mapping)
        cache.whole.write(key[:num_tokens], value[:num_tokens], batch.slot_mapping)
        if batch.whole is not None:
            self._attend_whole(query, cache.whole, batch.whole, attn_metadata, output)
        for index, compression in enumerate(batch.compressions):
            with attn_metadata.clock.measuring(index):
                self._compress(query, cache, compression, layer_index, attn_metadata)
        if batch.by_head is not None:
            self._attend_by_head(
                query, cache.by_head, batch.by_head, layer_index, attn_metadata, output
            )
        return output

    def _layer_cache(
        self, kv_cache: torch.Tensor, layer_index: int, attn_metadata: HeadKVCpuMetadata
    ) -> LayerCache:
        if self._cache is None or self._cache.kv_cache is not kv_cache:
            num_layers = len(attn_metadata.layers)
            self._cache = LayerCache.of(kv_cache, layer_index, num_layers, attn_metadata.isa)
        return self._cache

    def _attend_whole(
        self,
        query: torch.Tensor,
        cache: PagedCache,
        whole: WholeTokens,
        attn_metadata: HeadKVCpuMetadata,
        output: torch.Tensor,
    ) -> None:
        schedule = attn_metadata.whole_schedule
        self._attend(
            query, cache, whole, whole.tokens, whole.seq_lens, whole.block_table, schedule, output
        )

    def _attend_by_head(
        self,
        query: torch.Tensor,
        cache: PagedCache,
        by_head: HeadTokens,
        layer_index: int,
        attn_metadata: HeadKVCpuMetadata,
        output: torch.Tensor,
    ) -> None:
        # The query is a strided part of a projection's output, so this copies its rows.
        shape = (-1, self.num_queries_per_kv, self.head_size)
        seq_lens, block_table = (
            by_head.layer_seq_lens[layer_index],
            by_head.block_tables[layer_index],
        )
        schedule = attn_metadata.head_schedules[layer_index]
        query, output = query.reshape(shape), output.view(shape)
        self._attend(query, cache, by_head, by_head.rows, seq_lens, block_table, schedule, output)

    def _attend(
        self,
        query: torch.Tensor,
        cache: PagedCache,
        tokens: WholeTokens | HeadTokens,
        places: Indices,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        schedule: torch.Tensor | None,
        output: torch.Tensor,
    ) -> None:
        """Of `query` and `output`, [num_rows, num_heads, head_size], the rows in `places`."""
        is_in_a_row = isinstance(places, slice)
        queries = query[places]
        results = output[places] if is_in_a_row else torch.empty_like(queries)
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
            s_aux=None,
        )
        if not is_in_a_row:
            output[places] = results

    def _compress(
        self,
        query: torch.Tensor,
        cache: LayerCache,
        compression: Compression,
        layer_index: int,
        attn_metadata: HeadKVCpuMetadata,
    ) -> None:
        window = query[compression.window_start :][: attn_metadata.settings.window]
        attention = LayerAttention(layer_index, self.scale, self.logits_soft_cap)
        compress(window, cache, compression, attention, attn_metadata.settings, attn_metadata.live)

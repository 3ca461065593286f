# SPDX-License-Identifier: Apache-2.0
"""One layer's attention on vLLM's CPU kernels."""

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backend import AttentionLayer
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from headkv_vllm.batch import Compression, HeadTokens, WholeTokens
from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allotment import Bounds
from headkv_vllm.engine.backends.cpu_cache import (
    flat_head_blocks,
    gather_entries,
    gather_keys,
    gather_values,
    split_key_value,
    write,
)
from headkv_vllm.engine.backends.cpu_metadata import HeadKVCpuMetadata
from headkv_vllm.errors import UnsupportedError
from headkv_vllm.selection import (
    count_best,
    pool,
    recency,
    top_positions,
    value_norms,
    window_attention,
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
        for index, compression in enumerate(batch.compressions):
            with attn_metadata.clock.measuring(index):
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
        scores = self._position_scores(query, kv_cache, compression, attn_metadata)
        block_size, isa = kv_cache.shape[2], attn_metadata.isa
        num_head_blocks = _deal_out(scores, compression, layer_index, block_size, attn_metadata)
        heads, positions = top_positions(scores, num_head_blocks * block_size)
        blocks, offsets = compression.blocks[positions // block_size], positions % block_size
        key, value = gather_entries(kv_cache, blocks, heads, offsets, isa)
        slots = compression.slots[layer_index]
        write(flat_cache, key[:, None], value[:, None], slots, isa)

    def _position_scores(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        compression: Compression,
        attn_metadata: HeadKVCpuMetadata,
    ) -> torch.Tensor:
        """How much each KV head wants each position: [num_kv_heads, num_candidates]."""
        settings, isa = attn_metadata.settings, attn_metadata.isa
        num_candidates = compression.num_candidates
        if compression.policy.positions == "recency":
            return recency(num_candidates, settings.sink).expand(self.num_kv_heads, -1)
        window = query[compression.window_start :][: settings.window]
        keys = gather_keys(kv_cache, compression.blocks, isa)[..., : compression.num_prompt_tokens]
        attention = window_attention(
            window, keys, self.scale, self.logits_soft_cap, settings.query_reduction
        )
        pooled = pool(attention[:, : -settings.window], settings)[:, :num_candidates]
        if not settings.value_norm:
            return pooled
        blocks = compression.blocks[: num_candidates // kv_cache.shape[2]]
        return pooled * value_norms(gather_values(kv_cache, blocks, isa))


def _deal_out(
    scores: torch.Tensor,
    compression: Compression,
    layer_index: int,
    block_size: int,
    attn_metadata: HeadKVCpuMetadata,
) -> torch.Tensor:
    """n[layer_index], [num_kv_heads], decided here under an adaptive policy."""
    num_head_blocks = compression.num_head_blocks[layer_index]
    if not compression.policy.adaptive:
        return num_head_blocks
    total = int(num_head_blocks.sum())
    bounds = Bounds(attn_metadata.settings.min_blocks, compression.num_candidates // block_size)
    decided = split_layer(count_best(scores, total * block_size), total, bounds)
    attn_metadata.live.record(compression.compressed_blocks, layer_index, decided)
    return torch.from_numpy(decided)

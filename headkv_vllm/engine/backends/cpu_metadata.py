# SPDX-License-Identifier: Apache-2.0
"""One step as vLLM's CPU kernels want it: the batch, and a work schedule per kernel call."""

from dataclasses import dataclass

import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_cache_interface import AttentionSpec

from headkv_vllm.batch import Batch, HeadTokens, WholeTokens
from headkv_vllm.batch_planner import BatchPlanner
from headkv_vllm.budgets.cache import AllotmentCache
from headkv_vllm.budgets.live import LiveAllotments
from headkv_vllm.config import Settings
from headkv_vllm.engine.backends.cpu_cache import PACKINGS
from headkv_vllm.engine.compaction_clock import CompactionClock
from headkv_vllm.engine.settings import read_settings
from headkv_vllm.engine.worker_heads import worker_scores
from headkv_vllm.engine.worker_table import worker_table
from headkv_vllm.errors import UnsupportedError
from headkv_vllm.row_allotments import RowAllotments


@dataclass(frozen=True)
class HeadKVCpuMetadata:
    """One step, and the kernels' work schedules for it.

    layers: index of each layer by name. head_schedules: one per layer.
    live: where each layer records what a prompt has decided, under adaptive policies.
    clock: where each layer says how long it took to compress a prompt.
    """

    batch: Batch
    layers: dict[str, int]
    isa: str
    settings: Settings
    live: LiveAllotments
    clock: CompactionClock
    whole_schedule: torch.Tensor | None
    head_schedules: tuple[torch.Tensor, ...]


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
        self._splits_kv = envs.VLLM_CPU_ATTN_SPLIT_KV  # looked up each time that it is named
        self._isa = _get_attn_isa(self._dtype, kv_cache_spec.block_size, kv_cache_spec.head_size)
        if self._isa not in PACKINGS:
            raise UnsupportedError(
                f"--attention-backend headkv cannot read the packing of instruction set "
                f"{self._isa!r}: allowed are {', '.join(PACKINGS)}"
            )
        scores = worker_scores(vllm_config, layer_names, kv_cache_spec.num_kv_heads)
        self._layers = {name: index for index, name in enumerate(layer_names)}
        self._live = LiveAllotments(*scores.shape)
        self._allotments = AllotmentCache(scores, self._settings)
        self._table = worker_table(vllm_config)
        block_size, window = kv_cache_spec.block_size, self._settings.window
        self._planner = BatchPlanner(
            RowAllotments(self._allotments, self._live, window, block_size),
            len(layer_names),
            kv_cache_spec.num_kv_heads,
            block_size,
            window,
        )
        self._last: HeadKVCpuMetadata | None = None

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
        if self._settings.check_integrity:
            self._planner.check_integrity()
        if self._last is None or self._last.batch is not batch:
            self._last = self._metadata(batch)
        return self._last

    def _metadata(self, batch: Batch) -> HeadKVCpuMetadata:
        for compression in batch.compressions:
            if compression.policy.adaptive:
                self._live.begin(compression.compressed_blocks)
        cache = self._allotments
        self._table.write_plan_cache(cache.hits, cache.misses, len(cache))
        return HeadKVCpuMetadata(
            batch,
            self._layers,
            self._isa,
            self._settings,
            self._live,
            CompactionClock(len(batch.compressions), len(self._layers), self._table),
            self._whole_schedule(batch.whole),
            self._head_schedules(batch.by_head),
        )

    def _whole_schedule(self, whole: WholeTokens | None) -> torch.Tensor | None:
        if whole is None:
            return None
        starts = whole.query_start_loc
        return self._schedule(starts, whole.seq_lens, self._num_heads, self._spec.num_kv_heads)

    def _head_schedules(self, by_head: HeadTokens | None) -> tuple[torch.Tensor, ...]:
        if by_head is None:
            return ()
        # A schedule says which keys are visited; those that a query may not attend are masked by
        # `seq_lens`. Up to the ends of blocks it does for all steps that a batch is used for.
        block_size = self._spec.block_size
        seq_lens = (by_head.seq_lens + block_size - 1) // block_size * block_size
        starts, group_size = by_head.query_start_loc, self._num_heads // self._spec.num_kv_heads
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

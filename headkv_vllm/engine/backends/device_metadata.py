# SPDX-License-Identifier: Apache-2.0
"""One step as the kernels want it, made on the device from rows that the host never reads."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from headkv_vllm.batch import Indices
from headkv_vllm.block_row import HEADER_SIZE
from headkv_vllm.budgets.policy import Policy
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.engine.backends.device_clock import DeviceClock, StepClock
from headkv_vllm.engine.backends.warm_up import STEP_WARM_UP
from headkv_vllm.engine.settings import read_settings
from headkv_vllm.engine.worker_heads import worker_scores
from headkv_vllm.engine.worker_table import worker_table
from headkv_vllm.kernels.allotment import HeadWeights, Sizes, first_head_blocks
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunks import Chunks, num_completed
from headkv_vllm.kernels.decided import Decided
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.position_scores import Wanted
from headkv_vllm.kernels.prompt_tables import PromptTables
from headkv_vllm.kernels.rows import DeviceRows, DeviceTokens
from headkv_vllm.kernels.step_tokens import step_tokens
from headkv_vllm.kernels.work_list import WorkList, num_programs_of, work_list


@dataclass(frozen=True)
class Decodes:
    """The tokens of requests that compute one each.

    places: in the batch, [num_tokens] int64 or a slice.
    """

    places: Indices
    tokens: DeviceTokens
    work: WorkList


@dataclass(frozen=True)
class HeadKVDeviceMetadata:
    """One step. layers: index of each layer by name. slots: [num_tokens] int64.

    completing: those of `chunks` that may complete prompts. clock: how long that takes.
    inputs: what each layer has made of its view of the cache, by name; as long as the builder is.
    prompt_tables: of the requests in `chunks`, where another kernel than ours reads prompts.
    """

    layers: dict[str, int]
    rows: DeviceRows
    slots: torch.Tensor
    chunks: Chunks | None
    completing: Chunks | None
    clock: StepClock | None
    decodes: Decodes | None
    wanted: Wanted
    decided: Decided
    inputs: dict[str, LayerInputs]
    prompt_tables: PromptTables | None = None


class HeadKVDeviceMetadataBuilder(AttentionMetadataBuilder[HeadKVDeviceMetadata]):
    """Plans each step once for all layers, by a handful of launches.

    The host knows how many tokens each request computes. Which prompts are complete, and what was
    dealt out to whose heads, only rows say.
    """

    # Of a step that decodes one token for each request all launches and their places are the same.
    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        settings, num_kv_heads = read_settings(vllm_config), kv_cache_spec.num_kv_heads
        self._layers = {name: index for index, name in enumerate(layer_names)}
        scores = worker_scores(vllm_config, layer_names, num_kv_heads)
        self._weights = _weights(scores, settings, device)
        self.sizes = Sizes(
            num_kv_heads, settings.window, kv_cache_spec.block_size, settings.min_blocks
        )
        recent = _by_policy(lambda policy: policy.positions == "recency", device)
        self._wanted = Wanted(settings, recent)
        # Where vLLM measures what graphs take, rows are all zero and there is no such number yet.
        num_blocks = vllm_config.cache_config.num_gpu_blocks or 1
        counts = torch.zeros((num_blocks, scores.size), dtype=torch.int32, device=device)
        self._decided = Decided(_by_policy(lambda policy: policy.adaptive, device), counts)
        self._num_programs = num_programs_of(device)
        self._clock = DeviceClock(worker_table(vllm_config))
        self._buffers = Buffers(device)
        self._inputs: dict[str, LayerInputs] = {}
        graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        self._reserve(max(vllm_config.scheduler_config.max_num_seqs, graphs))
        STEP_WARM_UP.add(self)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> HeadKVDeviceMetadata:
        """Plan the step that `common_attn_metadata` describes."""
        common, num_reqs = common_attn_metadata, common_attn_metadata.num_reqs
        query_start_loc = common.query_start_loc[: num_reqs + 1]
        seq_lens = common.seq_lens[:num_reqs]
        rows = self._rows(common.block_table_tensor[:num_reqs], query_start_loc, seq_lens)
        tokens, slots = step_tokens(
            rows.rows,
            query_start_loc,
            seq_lens,
            common.num_actual_tokens,
            common.max_query_len,
            rows.block_size,
            self._buffers,
        )
        query_lens = np.diff(common.query_start_loc_cpu.numpy()[: num_reqs + 1])
        # A single token is a decode, whatever its request is at, for the step that completes a
        # prompt computes its window. So a graph of decodes fits every step of single tokens.
        is_chunk = query_lens > 1
        completing = self._completing(common, query_lens)
        return HeadKVDeviceMetadata(
            self._layers,
            rows,
            slots,
            self._chunks(common, is_chunk),
            completing,
            self._timed(rows, completing),
            self._decodes(common, is_chunk, rows, tokens),
            self._wanted,
            self._decided,
            self._inputs,
        )

    def _reserve(self, num_tokens: int) -> None:
        """Plan the largest step that graphs are captured of, so that what they read never moves."""
        nothing = torch.zeros(num_tokens + 1, dtype=torch.int32, device=self.device)
        table = nothing[:-1, None].expand(-1, HEADER_SIZE).contiguous()
        rows = self._rows(table, nothing, nothing[:-1])
        tokens, _ = step_tokens(
            *(table, nothing, nothing[:-1], num_tokens, 1, rows.block_size), self._buffers
        )
        work_list(rows, tokens, self._num_programs, self._buffers)

    def _rows(
        self, table: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
    ) -> DeviceRows:
        sizes, step = self.sizes, (table, query_start_loc, seq_lens)
        first = first_head_blocks(*step, self._weights, self._decided, sizes, self._buffers)
        return DeviceRows(
            table, first, len(self._layers), sizes.num_kv_heads, sizes.block_size, sizes.window
        )

    def _chunks(
        self, common: CommonAttentionMetadata, is_chunk: npt.NDArray[np.bool_]
    ) -> Chunks | None:
        (requests,) = is_chunk.nonzero()
        if len(requests) == 0:
            return None
        locations = (common.query_start_loc[: len(is_chunk) + 1], common.seq_lens[: len(is_chunk)])
        on_device = self._on_device(requests.astype(np.int32))
        return Chunks(on_device, *locations, common.max_seq_len, common.max_query_len)

    def _completing(
        self, common: CommonAttentionMetadata, query_lens: npt.NDArray[np.integer]
    ) -> Chunks | None:
        """No prompt is completed by fewer tokens than its window: the scheduler sees to that.

        Only for these is there any memory to be had for scores of positions.
        """
        may_complete = query_lens >= self.sizes.window
        if common.is_prefilling is not None:
            # Requests that fill a graph up may be left out of it.
            known = common.is_prefilling.numpy()[: len(query_lens)]
            may_complete[: len(known)] &= known
        chunks = self._chunks(common, may_complete)
        if chunks is None or common.seq_lens_cpu_upper_bound is None:
            return chunks
        ends = common.seq_lens_cpu_upper_bound.numpy()[: len(query_lens)]
        return replace(chunks, longest=int(ends[may_complete].max()))

    def _timed(self, rows: DeviceRows, completing: Chunks | None) -> StepClock | None:
        self._clock.collect()
        if completing is None:
            return None
        return self._clock.begin(num_completed(rows, completing))

    def _decodes(
        self,
        common: CommonAttentionMetadata,
        is_chunk: npt.NDArray[np.bool_],
        rows: DeviceRows,
        tokens: DeviceTokens,
    ) -> Decodes | None:
        if is_chunk.all():
            return None
        places: Indices = slice(None)
        if is_chunk.any():
            places = self._on_device(common.query_start_loc_cpu.numpy()[: len(is_chunk)][~is_chunk])
            tokens = DeviceTokens(tokens.requests[places], tokens.ends[places])
        work = work_list(rows, tokens, self._num_programs, self._buffers)
        return Decodes(places, tokens, work)

    def _on_device(self, values: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def _by_policy(holds: Callable[[Policy], bool], device: torch.device) -> torch.Tensor:
    """Of which policies something holds: [num_policies] int32."""
    values = [holds(policy) for policy in POLICIES.values()]
    return torch.tensor(values, dtype=torch.int32, device=device)


def _weights(
    scores: npt.NDArray[np.float64], settings: Settings, device: torch.device
) -> HeadWeights:
    """Of all policies: their shares keep their proportions, whatever there is to share."""
    shares = [policy.shares(scores, 1, 2, settings).ravel() for policy in POLICIES.values()]
    return HeadWeights.of(np.stack(shares), device)

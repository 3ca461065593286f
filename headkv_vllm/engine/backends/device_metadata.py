# SPDX-License-Identifier: Apache-2.0
"""One step as the kernels want it, made on the device from rows that the host never reads."""

from dataclasses import dataclass

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
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.engine.settings import read_settings
from headkv_vllm.engine.worker_heads import worker_scores
from headkv_vllm.errors import UnsupportedError
from headkv_vllm.kernels.allotment import HeadWeights, first_head_blocks
from headkv_vllm.kernels.buffers import Buffers
from headkv_vllm.kernels.chunks import Chunks
from headkv_vllm.kernels.position_scores import Wanted
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
    """One step. layers: index of each layer by name. slots: [num_tokens] int64."""

    layers: dict[str, int]
    rows: DeviceRows
    slots: torch.Tensor
    chunks: Chunks | None
    decodes: Decodes | None
    wanted: Wanted


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
        self._spec, self._settings = kv_cache_spec, read_settings(vllm_config)
        _check_policy(self._settings)
        self._layers = {name: index for index, name in enumerate(layer_names)}
        scores = worker_scores(vllm_config, layer_names, kv_cache_spec.num_kv_heads)
        self._weights = _weights(scores, self._settings, device)
        recent = [policy.positions == "recency" for policy in POLICIES.values()]
        self._wanted = Wanted(
            self._settings, torch.tensor(recent, dtype=torch.int32, device=device)
        )
        self._num_programs = num_programs_of(device)
        self._buffers = Buffers(device)
        self._reserve(vllm_config.scheduler_config.max_num_seqs)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> HeadKVDeviceMetadata:
        """Plan the step that `common_attn_metadata` describes."""
        common, num_reqs = common_attn_metadata, common_attn_metadata.num_reqs
        rows = self._rows(common.block_table_tensor[:num_reqs])
        tokens, slots = step_tokens(
            rows.rows,
            common.query_start_loc[: num_reqs + 1],
            common.seq_lens[:num_reqs],
            common.num_actual_tokens,
            common.max_query_len,
            rows.block_size,
            self._buffers,
        )
        is_chunk = _is_chunk(common)
        return HeadKVDeviceMetadata(
            self._layers,
            rows,
            slots,
            self._chunks(common, is_chunk),
            self._decodes(common, is_chunk, rows, tokens),
            self._wanted,
        )

    def _reserve(self, max_num_seqs: int) -> None:
        """Plan the largest step that graphs are captured of, so that what they read never moves."""
        nothing = torch.zeros(max_num_seqs + 1, dtype=torch.int32, device=self.device)
        rows = self._rows(nothing[:-1, None].expand(-1, HEADER_SIZE).contiguous())
        tokens, _ = step_tokens(
            *(rows.rows, nothing, nothing[:-1], max_num_seqs, 1, rows.block_size), self._buffers
        )
        work_list(rows, tokens, self._num_programs, self._buffers)

    def _rows(self, table: torch.Tensor) -> DeviceRows:
        settings, block_size = self._settings, self._spec.block_size
        arguments = (settings.window, block_size, settings.min_blocks, self._buffers)
        first = first_head_blocks(table, self._weights, *arguments)
        sizes = (len(self._layers), self._spec.num_kv_heads, block_size, settings.window)
        return DeviceRows(table, first, *sizes)

    def _chunks(
        self, common: CommonAttentionMetadata, is_chunk: npt.NDArray[np.bool_]
    ) -> Chunks | None:
        (requests,) = is_chunk.nonzero()
        if len(requests) == 0:
            return None
        locations = (common.query_start_loc[: len(is_chunk) + 1], common.seq_lens[: len(is_chunk)])
        on_device = self._on_device(requests.astype(np.int32))
        return Chunks(on_device, *locations, common.max_seq_len, common.max_query_len)

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


def _is_chunk(common: CommonAttentionMetadata) -> npt.NDArray[np.bool_]:
    """Whether each request computes several tokens, or its prompt's: [num_reqs], on the host."""
    num_reqs = common.num_reqs
    starts = common.query_start_loc_cpu.numpy()[: num_reqs + 1]
    is_chunk: npt.NDArray[np.bool_] = np.diff(starts) > 1
    if common.is_prefilling is not None:  # there is none where vLLM makes up a step to capture it
        is_chunk |= common.is_prefilling.numpy()[:num_reqs]
    return is_chunk


def _check_policy(settings: Settings) -> None:
    if POLICIES[settings.policy].adaptive:
        static = ", ".join(name for name, policy in POLICIES.items() if not policy.adaptive)
        raise UnsupportedError(
            f"--attention-backend headkv does not support policy={settings.policy!r} on this "
            f"platform: allowed are {static}"
        )


def _weights(
    scores: npt.NDArray[np.float64], settings: Settings, device: torch.device
) -> HeadWeights:
    """Of all policies: their shares keep their proportions, whatever there is to share."""
    shares = [policy.shares(scores, 1, 2, settings).ravel() for policy in POLICIES.values()]
    return HeadWeights.of(np.stack(shares), device)

# SPDX-License-Identifier: Apache-2.0
"""One step as the kernels want it, made on the device from rows that the host never reads."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import AttentionSpec

from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.engine.settings import read_settings
from headkv_vllm.engine.worker_heads import worker_scores
from headkv_vllm.errors import UnsupportedError
from headkv_vllm.kernels.allotment import HeadWeights, first_head_blocks
from headkv_vllm.kernels.position_scores import Wanted
from headkv_vllm.kernels.prompts import Prompts
from headkv_vllm.kernels.rows import DeviceRows, DeviceTokens
from headkv_vllm.kernels.step_tokens import step_tokens
from headkv_vllm.kernels.work_list import WorkList, work_list

Places = slice | torch.Tensor
PROGRAMS_PER_PROCESSOR = 8


@dataclass(frozen=True)
class Decodes:
    """Tokens that follow their prompts. places: in the batch, [num_tokens] int64 or a slice."""

    places: Places
    tokens: DeviceTokens
    work: WorkList


@dataclass(frozen=True)
class HeadKVDeviceMetadata:
    """One step. layers: index of each layer by name. slots: [num_tokens] int64."""

    layers: dict[str, int]
    rows: DeviceRows
    slots: torch.Tensor
    prompts: Prompts | None
    decodes: Decodes | None
    wanted: Wanted


class HeadKVDeviceMetadataBuilder(AttentionMetadataBuilder[HeadKVDeviceMetadata]):
    """Plans each step once for all layers, by a handful of launches.

    The host knows how many tokens each request computes, and whether it still reads its prompt:
    the scheduler ends chunks with prompts. Which prompts are complete, and what was dealt out to
    whose heads, only rows say.
    """

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
        self._num_programs = PROGRAMS_PER_PROCESSOR * _num_processors(device)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> HeadKVDeviceMetadata:
        """Plan the step that `common_attn_metadata` describes."""
        common, block_size = common_attn_metadata, self._spec.block_size
        num_reqs, window = common.num_reqs, self._settings.window
        table = common.block_table_tensor[:num_reqs]
        starts, ends = common.query_start_loc[: num_reqs + 1], common.seq_lens[:num_reqs]
        first = first_head_blocks(
            table, self._weights, window, block_size, self._settings.min_blocks
        )
        sizes = (len(self._layers), self._spec.num_kv_heads, block_size, window)
        rows = DeviceRows(table, first, *sizes)
        tokens, slots = step_tokens(
            table, starts, ends, common.num_actual_tokens, common.max_query_len, block_size
        )
        is_prompt = _is_prompt(common)
        return HeadKVDeviceMetadata(
            self._layers,
            rows,
            slots,
            self._prompts(common, is_prompt, starts, ends),
            self._decodes(common, is_prompt, rows, tokens),
            self._wanted,
        )

    def _prompts(
        self,
        common: CommonAttentionMetadata,
        is_prompt: npt.NDArray[np.bool_],
        starts: torch.Tensor,
        ends: torch.Tensor,
    ) -> Prompts | None:
        (requests,) = is_prompt.nonzero()
        if len(requests) == 0:
            return None
        on_device = self._on_device(requests.astype(np.int32))
        return Prompts(on_device, starts, ends, common.max_seq_len, common.max_query_len)

    def _decodes(
        self,
        common: CommonAttentionMetadata,
        is_prompt: npt.NDArray[np.bool_],
        rows: DeviceRows,
        tokens: DeviceTokens,
    ) -> Decodes | None:
        if is_prompt.all():
            return None
        places: Places = slice(None)
        if is_prompt.any():
            starts = common.query_start_loc_cpu[: len(is_prompt) + 1].numpy()
            places = self._on_device((~is_prompt).repeat(np.diff(starts)).nonzero()[0])
            tokens = DeviceTokens(tokens.requests[places], tokens.ends[places])
        return Decodes(places, tokens, work_list(rows, tokens, self._num_programs))

    def _on_device(self, values: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def _is_prompt(common: CommonAttentionMetadata) -> npt.NDArray[np.bool_]:
    """Whether each request still reads its prompt: [num_reqs], on the host."""
    if common.is_prefilling is None:  # a step that vLLM makes up, to capture a graph
        return np.zeros(common.num_reqs, dtype=np.bool_)
    is_prompt: npt.NDArray[np.bool_] = common.is_prefilling[: common.num_reqs].numpy()
    return is_prompt


def _check_policy(settings: Settings) -> None:
    if POLICIES[settings.policy].adaptive:
        static = ", ".join(name for name, policy in POLICIES.items() if not policy.adaptive)
        raise UnsupportedError(
            f"policy={settings.policy!r} is not allowed on this platform: allowed are {static}"
        )


def _weights(
    scores: npt.NDArray[np.float64], settings: Settings, device: torch.device
) -> HeadWeights:
    """Of all policies: their shares keep their proportions, whatever there is to share."""
    shares = [policy.shares(scores, 1, 2, settings).ravel() for policy in POLICIES.values()]
    return HeadWeights.of(np.stack(shares), device)


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

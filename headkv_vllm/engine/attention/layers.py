# SPDX-License-Identifier: Apache-2.0
"""One worker's layers: which heads they have, and what these keep; the same on every platform."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import AttentionSpec

from headkv_vllm.arrays import FloatArray
from headkv_vllm.budgets.adaptive_allocations import AdaptiveAllocations
from headkv_vllm.budgets.allocation_cache import AllocationCache
from headkv_vllm.budgets.tensor_parallel import worker_kv_heads
from headkv_vllm.cache.compression import Compressor, LayerLogits, Workspace
from headkv_vllm.cache.compression_points import CompressionPoints
from headkv_vllm.cache.head_blocks import HeadBlocks
from headkv_vllm.cache.row_allocations import RowAllocations
from headkv_vllm.engine.settings import full_layers, query_blocks, read_scores, read_settings
from headkv_vllm.errors import UnsupportedError, shown


class WorkerLayers:
    """One worker's layers of one KV cache group.

    indices: of the layers, by name. allocations: n[L, H] of the requests. static: the
    cache behind them. settings: the server's.
    """

    def __init__(
        self, vllm_config: VllmConfig, layer_names: list[str], kv_cache_spec: AttentionSpec
    ) -> None:
        self.settings, self.spec = read_settings(vllm_config), kv_cache_spec
        self.indices = {name: index for index, name in enumerate(layer_names)}
        scores = worker_scores(vllm_config, layer_names, kv_cache_spec.num_kv_heads)
        self.static = AllocationCache(scores, self.settings)
        block_size = kv_cache_spec.block_size
        num_query_blocks = query_blocks(vllm_config, self.settings, block_size)
        points = CompressionPoints(self.settings, block_size, num_query_blocks)
        self.allocations = RowAllocations(self.static, AdaptiveAllocations(), points)
        self._modules = vllm_config.compilation_config.static_forward_context

    @property
    def num_layers(self) -> int:
        return len(self.indices)

    def modules(self) -> list[Any]:
        """vLLM's attention layers, in order; each has its view of the cache as `kv_cache`."""
        return [self._modules[name] for name in self.indices]

    def compressor(
        self,
        head_blocks: HeadBlocks,
        workspace: Workspace,
        key_scale_of: Callable[[Any], torch.Tensor | float] = lambda _: 1.0,
    ) -> Compressor:
        """For the cache that is there now. key_scale_of: of a layer, its stored keys' unit."""
        modules = self.modules()
        device = modules[0].kv_cache.device
        scales = [float(one.impl.scale) for one in modules]
        soft_caps = [float(one.impl.logits_soft_cap or 0.0) for one in modules]
        key_scales = [torch.as_tensor(key_scale_of(one), device=device).view(()) for one in modules]
        sinks = [one.impl.sinks for one in modules if getattr(one.impl, "sinks", None) is not None]
        heads = (len(modules) * self.spec.num_kv_heads, -1)
        logits = LayerLogits(
            torch.tensor(scales, device=device) * torch.stack(key_scales).float(),
            torch.tensor(soft_caps, device=device) if any(soft_caps) else None,
            torch.stack(sinks).float().view(heads) if sinks else None,
        )
        return Compressor(head_blocks, logits, self.settings, workspace)


def worker_scores(vllm_config: VllmConfig, layer_names: list[str], num_kv_heads: int) -> FloatArray:
    """The scores of this worker's layers and KV heads: [len(layer_names), num_kv_heads].

    Raises UnsupportedError if vLLM gives full attention to other layers than the model's
    configuration says.
    """
    scores = read_scores(vllm_config)
    full = full_layers(vllm_config.model_config)
    own = [extract_layer_index(name) for name in layer_names]
    parallel_config = vllm_config.parallel_config
    start, end = vllm_config.model_config.get_layers_start_end_indices(parallel_config)
    if sorted(own) != [index for index in full if start <= index < end]:
        raise UnsupportedError(
            f"--attention-backend headkv does not support this model: by its configuration the "
            f"layers {shown(full)} have full attention, but in vLLM these are {shown(own)}"
        )
    layers = [full.index(index) for index in own]
    heads = worker_kv_heads(
        scores.shape[1],
        get_tensor_model_parallel_rank(),
        get_tensor_model_parallel_world_size(),
    )
    assert len(heads) == num_kv_heads
    return scores[np.ix_(layers, heads)]

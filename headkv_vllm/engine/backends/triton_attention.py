# SPDX-License-Identifier: Apache-2.0
"""One layer's attention by our own Triton kernels alone."""

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionImpl, AttentionLayer
from vllm.v1.kv_cache_interface import is_quantized_kv_cache

from headkv_vllm.engine.backends.device_metadata import Decodes, HeadKVDeviceMetadata
from headkv_vllm.engine.backends.flat_cache import flat_head_blocks
from headkv_vllm.engine.backends.layer_features import check_features
from headkv_vllm.engine.backends.warm_up import STEP_WARM_UP
from headkv_vllm.kernels.chunk_attention import attend_chunks
from headkv_vllm.kernels.chunks import Chunks
from headkv_vllm.kernels.head_attention import attend_by_head
from headkv_vllm.kernels.kept_entries import copy_entries
from headkv_vllm.kernels.kept_positions import kept_positions
from headkv_vllm.kernels.layer_inputs import LayerInputs
from headkv_vllm.kernels.layer_split import split_layers
from headkv_vllm.kernels.position_scores import position_scores
from headkv_vllm.kernels.stored_entries import store_entries
from headkv_vllm.kernels.window_scores import window_scores


class HeadKVTritonImpl(AttentionImpl[HeadKVDeviceMetadata]):
    """One layer's attention: write, attend chunks, compress, attend single tokens."""

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
        self._logits_soft_cap = float(logits_soft_cap or 0.0)
        check_features(
            alibi_slopes is not None,
            sliding_window is not None,
            sinks is not None,
            kv_sharing_target_layer_name is not None,
        )
        # Both of vLLM's model runners take registrations while they make layers.
        STEP_WARM_UP.register_warmup()

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: HeadKVDeviceMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query: [num_tokens, num_heads, head_size]; key and value with num_kv_heads.

        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size], this layer's view.
        Writes to `output`, shaped like `query`, and returns it.
        """
        if attn_metadata is None:  # a profiling run
            return output.zero_()
        inputs = attn_metadata.inputs.get(layer.layer_name)
        if inputs is None:
            inputs = self._layer_inputs(layer, kv_cache, attn_metadata)
        num_tokens, rows = len(attn_metadata.slots), attn_metadata.rows
        store_entries(key[:num_tokens], value[:num_tokens], attn_metadata.slots, rows, inputs)
        if attn_metadata.chunks is not None:
            self._attend_chunks(query, kv_cache, inputs, attn_metadata, output)
        if attn_metadata.completing is not None:
            assert attn_metadata.clock is not None
            with attn_metadata.clock.measuring():
                _compress(query, attn_metadata.completing, inputs, attn_metadata)
        if attn_metadata.decodes is not None:
            _decode(query[:num_tokens], attn_metadata.decodes, inputs, attn_metadata, output)
        return output

    def _attend_chunks(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        inputs: LayerInputs,
        attn_metadata: HeadKVDeviceMetadata,
        output: torch.Tensor,
    ) -> None:
        assert attn_metadata.chunks is not None
        attend_chunks(query, attn_metadata.rows, attn_metadata.chunks, inputs, output)

    def _layer_inputs(
        self, layer: AttentionLayer, kv_cache: torch.Tensor, attn_metadata: HeadKVDeviceMetadata
    ) -> LayerInputs:
        """Made once, and kept where it ends with the cache: vLLM makes one to measure graphs."""
        index = attn_metadata.layers[layer.layer_name]
        flat = flat_head_blocks(kv_cache, index, len(attn_metadata.layers))[:, 0]
        if is_quantized_kv_cache(self.kv_cache_dtype):
            flat = flat.view(current_platform.fp8_dtype())
        scales = (layer._k_scale.view(1), layer._v_scale.view(1))
        inputs = LayerInputs(index, flat, self.scale, self._logits_soft_cap, *scales)
        attn_metadata.inputs[layer.layer_name] = inputs
        return inputs


def _compress(
    query: torch.Tensor,
    chunks: Chunks,
    inputs: LayerInputs,
    attn_metadata: HeadKVDeviceMetadata,
) -> None:
    rows, wanted = attn_metadata.rows, attn_metadata.wanted
    attention = window_scores(query, rows, chunks, inputs, wanted.settings.query_reduction)
    scores = position_scores(attention, rows, chunks, inputs, wanted)
    min_blocks = wanted.settings.min_blocks
    split_layers(scores, rows, chunks, inputs.layer, attn_metadata.decided, min_blocks)
    copy_entries(kept_positions(scores, rows, chunks, inputs.layer), rows, chunks, inputs)


def _decode(
    query: torch.Tensor,
    decodes: Decodes,
    inputs: LayerInputs,
    attn_metadata: HeadKVDeviceMetadata,
    output: torch.Tensor,
) -> None:
    if isinstance(decodes.places, slice):
        attend_by_head(query, attn_metadata.rows, decodes.tokens, decodes.work, inputs, output)
        return
    queries = query[decodes.places]
    results = torch.empty_like(queries)
    attend_by_head(queries, attn_metadata.rows, decodes.tokens, decodes.work, inputs, results)
    output[decodes.places] = results

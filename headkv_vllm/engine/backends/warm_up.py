# SPDX-License-Identifier: Apache-2.0
"""Compiles, before the first request, the kernels that no dummy step of vLLM's reaches."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.warmup.jit_warmup import VllmJitKernel
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata

from headkv_vllm.block_row import BlockRow
from headkv_vllm.kernels.allotment import Sizes


@dataclass(frozen=True)
class Step:
    """One request's. num_computed: its tokens before the step."""

    num_computed: int
    num_new: int


class StepWarmUp(VllmJitKernel[Step]):
    """A request that is compressed and goes on, in the first layer: in vLLM's registry of kernels
    to compile it is one more, and runs when all memory is there and nobody is served yet.

    It writes to blocks that are no request's, as vLLM's own warm-up does.
    """

    CompileKey = Step

    def __init__(
        self, builder: AttentionMetadataBuilder[Any], vllm_config: VllmConfig, sizes: Sizes
    ) -> None:
        super().__init__()
        self._builder, self._vllm_config = builder, vllm_config
        num_compressed = sizes.min_blocks
        length = (num_compressed + 1) * sizes.block_size + sizes.window
        blocks = range(1, num_compressed + length // sizes.block_size + 2)
        self._row = BlockRow(
            length, tuple(blocks[:num_compressed]), tuple(blocks[num_compressed:]), 0
        )

    @property
    def num_blocks(self) -> int:
        """How many blocks a cache must have for it, the first, which is nobody's, included."""
        return self._row.blocks[-1] + 1

    def get_warmup_keys(self) -> list[Step]:
        """The prompt, a token after it, and two at once."""
        length = self._row.num_prompt_tokens
        return [Step(0, length), Step(length, 1), Step(length + 1, 2)]

    @torch.inference_mode()
    def compile(self, compile_key: Step) -> None:
        """Run the step that `compile_key` describes."""
        metadata = self._builder.build(0, self._described(compile_key))
        name = self._builder.layer_names[0]
        layer = self._vllm_config.compilation_config.static_forward_context[name]
        assert isinstance(layer, Attention)
        query, key, value = (
            torch.zeros(
                (compile_key.num_new, num_heads, layer.head_size),
                dtype=self._vllm_config.model_config.dtype,
                device=self._builder.device,
            )
            for num_heads in (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
        )
        output = torch.empty_like(query)
        layer.impl.forward(layer, query, key, value, layer.kv_cache, metadata, output=output)

    def _described(self, step: Step) -> CommonAttentionMetadata:
        device, seq_len = self._builder.device, step.num_computed + step.num_new
        query_start_loc = torch.tensor([0, step.num_new], dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=query_start_loc.to(device),
            query_start_loc_cpu=query_start_loc,
            seq_lens=torch.tensor([seq_len], dtype=torch.int32, device=device),
            num_reqs=1,
            num_actual_tokens=step.num_new,
            max_query_len=step.num_new,
            max_seq_len=seq_len,
            block_table_tensor=torch.tensor(
                [self._row.entries()], dtype=torch.int32, device=device
            ),
            slot_mapping=torch.empty(step.num_new, dtype=torch.int64, device=device),
        )

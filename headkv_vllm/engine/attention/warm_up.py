# SPDX-License-Identifier: Apache-2.0
"""Compiles, before the first request, the kernels that no dummy step of vLLM's reaches."""

from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

import torch
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.model_executor.warmup.jit_warmup import VllmJitKernel
from vllm.v1.attention.backend import CommonAttentionMetadata

from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.config import Settings
from headkv_vllm.engine.settings import model_dtype

Builder = Any
"""`triton.HeadKVTritonMetadataBuilder`, which imports this."""


@dataclass(frozen=True)
class Step:
    """What requests that all have the same row compute. num_computed: tokens of each before it."""

    row: BlockRow
    num_reqs: int
    num_computed: int
    num_new: int


def warm_up_steps(settings: Settings, block_size: int, max_num_seqs: int) -> list[Step]:
    """A prompt that is compressed; a token after it, for batches of all sizes that kernels tell
    apart; and two tokens at once.
    """
    num_compressed = settings.min_blocks
    length = (num_compressed + 1) * block_size + settings.window
    num_blocks = -(-(length + 3) // block_size)
    blocks = tuple(range(1, 1 + num_compressed + num_blocks))
    row = BlockRow(length, blocks[:num_compressed], blocks[num_compressed:], policy_index=0)
    num_reqs = sorted({min(2**i, max_num_seqs) for i in range(max_num_seqs.bit_length() + 1)})
    single = [Step(row, n, length, 1) for n in num_reqs]
    return [Step(row, 1, 0, length), *single, Step(row, 1, length + 1, 2)]


class StepWarmUp(VllmJitKernel[tuple[Builder, Step]]):
    """Registered among vLLM's kernels to warm up, and run like them: once the cache is there, and
    before anything is served.

    Then the blocks that it writes to are nobody's. Later they are not, so a builder's steps run
    once, though vLLM may warm up again.
    """

    def __init__(self) -> None:
        super().__init__()
        # The registry outlives a cache, and builders hold views of it.
        self._waiting: WeakSet[Builder] = WeakSet()

    def add(self, builder: Builder) -> None:
        """From now on the next warm-up of this builder's engine is its, too."""
        self._waiting.add(builder)

    @override
    def get_warmup_keys(self, vllm_config: VllmConfig) -> list[tuple[Builder, Step]]:
        """The steps of each builder of this engine that waits, if its cache has room for them."""
        found = []
        for builder in [each for each in self._waiting if each.vllm_config is vllm_config]:
            self._waiting.remove(builder)
            max_num_seqs = vllm_config.scheduler_config.max_num_seqs
            block_size = builder.kv_cache_spec.block_size
            steps = warm_up_steps(builder.layers.settings, block_size, max_num_seqs)
            if len(_first_layer(builder).kv_cache) > steps[0].row.blocks[-1]:
                found += [(builder, step) for step in steps]
        return found

    @torch.inference_mode()
    @override
    def compile(self, compile_key: tuple[Builder, Step]) -> None:
        """Run the step in the builder's first layer: kernels are the same for all."""
        builder, step = compile_key
        layer = _first_layer(builder)
        query, key, value = (
            torch.zeros(
                (step.num_reqs * step.num_new, num_heads, layer.head_size),
                dtype=model_dtype(builder.vllm_config),
                device=builder.device,
            )
            for num_heads in (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
        )
        metadata = builder.build(0, _described(step, builder.device))
        output = torch.empty_like(query)
        layer.impl.forward(layer, query, key, value, layer.kv_cache, metadata, output=output)
        if metadata.compression is not None:
            with builder.clock.stopped():  # it is nobody's prompt
                for index in range(1, builder.layers.num_layers):
                    metadata.compression.add_layer(index, query)


STEP_WARM_UP: Final = StepWarmUp()


def _first_layer(builder: Builder) -> Any:
    layers = builder.vllm_config.compilation_config.static_forward_context
    return layers[builder.layer_names[0]]


def _described(step: Step, device: torch.device) -> CommonAttentionMetadata:
    seq_len, num_tokens = step.num_computed + step.num_new, step.num_reqs * step.num_new
    query_start_loc = torch.arange(0, num_tokens + 1, step.num_new, dtype=torch.int32)
    rows = torch.tensor([step.row.entries()] * step.num_reqs, dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=query_start_loc.to(device),
        query_start_loc_cpu=query_start_loc,
        seq_lens=torch.full((step.num_reqs,), seq_len, dtype=torch.int32, device=device),
        num_reqs=step.num_reqs,
        num_actual_tokens=num_tokens,
        max_query_len=step.num_new,
        max_seq_len=seq_len,
        block_table_tensor=rows.to(device),
        slot_mapping=torch.zeros(num_tokens, dtype=torch.int64, device=device),
    )

# SPDX-License-Identifier: Apache-2.0
"""A prompt that has been read, and answers to it.

An answer that is known is computed in one pass. Then the prompt's keys and values are constants:
whatever the answer's tokens attend, the prompt before them stays as it is. So a gradient needs no
graph but that of the answer's few tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from headkv_vllm.errors import ScoringError, UnsupportedError
from headkv_vllm.scoring.attention_rows import ATTENTION, Attend

PREFILL_CHUNK = 2048
"""Prompt tokens per forward pass: bounds the activations, whatever the prompt's length."""


class _ConstantLayer(DynamicLayer):  # type: ignore[misc]
    """Gives a pass its own keys and values back; `Attend` joins them to the prompt's."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


@dataclass(frozen=True, eq=False)
class ReadPrompt:
    """All tokens of a prompt but the last, which is the first row of each answer.

    cache: their keys and values. last: [1], the last token.
    """

    model: PreTrainedModel
    cache: DynamicCache
    last: torch.Tensor

    @classmethod
    @torch.no_grad()
    def read(
        cls, model: PreTrainedModel, ids: Sequence[int], prefill_chunk: int = PREFILL_CHUNK
    ) -> Self:
        """Reads the tokens `ids`.

        Raises UnsupportedError when the model was not loaded with the attention ATTENTION, or a
        layer does not keep all tokens.
        """
        attention = model.config._attn_implementation
        if attention != ATTENTION:
            raise UnsupportedError(
                f"the model's attention is {attention}, and only heads that attend by {ATTENTION} "
                "can be scored"
            )
        cache = DynamicCache(config=model.config)
        tokens = torch.tensor(ids, device=model.device)
        for chunk in tokens[:-1].split(prefill_chunk):
            model(chunk[None], past_key_values=cache, logits_to_keep=1)
        for index, layer in enumerate(cache.layers):
            if layer.keys.shape[2] != len(ids) - 1:
                raise UnsupportedError(
                    f"layer {index} attends {layer.keys.shape[2] + 1} of {len(ids)} tokens, so its "
                    "heads cannot be scored: only full attention can"
                )
        return cls(model, cache, tokens[-1:])

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return len(self.cache.layers)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values: [num_kv_heads, num_tokens, head_size]."""
        layer = self.cache.layers[index]
        return layer.keys[0], layer.values[0]

    @torch.no_grad()
    def generate(self, most: int, stop_ids: frozenset[int]) -> tuple[int, ...]:
        """A greedy answer of at most `most` tokens, which ends before a token of `stop_ids`.

        Raises ScoringError when the model yields no numbers.
        """
        said: list[int] = []
        last, num_steps = self.last, 0
        while len(said) < most:
            output = self.model(last[None], past_key_values=self.cache, logits_to_keep=1)
            num_steps += 1
            last = _finite(output.logits[0]).argmax(-1)
            if int(last) in stop_ids:
                break
            said.append(int(last))
        if num_steps:
            self.cache.crop(-num_steps)
        return tuple(said)

    def answer(self, tokens: Sequence[int], attend: Attend) -> torch.Tensor:
        """Logits [num_rows, vocab_size] float32 of the answer `tokens`, one row for each of them.

        A row's token is the one before: the first row's is the prompt's last. All layers attend by
        `attend`. Raises ScoringError when the model yields no numbers.
        """
        known = torch.tensor(tokens[:-1], dtype=self.last.dtype, device=self.last.device)
        layers = [_ConstantLayer(layer.keys, layer.values) for layer in self.cache.layers]
        output = self.model(
            torch.cat([self.last, known])[None],
            past_key_values=Cache(layers=layers),
            attend=attend,
        )
        return _finite(output.logits[0]).float()


def _finite(logits: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(logits).all():
        raise ScoringError(
            f"the model computes no finite numbers in {str(logits.dtype).removeprefix('torch.')}: "
            "try another --dtype"
        )
    return logits

# SPDX-License-Identifier: Apache-2.0
"""A prompt that has been read, and answers to it.

A known answer is computed in one pass. In this pass the prompt's keys and values are constants,
because the tokens of an answer do not change what the prompt before them computes. So a gradient
needs only the graph of the answer's few tokens.
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
"""Prompt tokens per forward pass. It bounds the activations for prompts of any length."""


class _ConstantLayer(DynamicLayer):  # type: ignore[misc]
    """Returns the new keys and values only; `Attend` joins them to those of the prompt."""

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
    """The KV cache of a prompt, without its last token, which gives the first token of an answer.

    cache: keys and values of all tokens before the last. last: [1], the last token.
    """

    model: PreTrainedModel
    cache: DynamicCache
    last: torch.Tensor

    @classmethod
    @torch.no_grad()
    def read(
        cls, model: PreTrainedModel, ids: Sequence[int], prefill_chunk: int = PREFILL_CHUNK
    ) -> Self:
        """Compute the prompt with the tokens `ids`.

        Raises UnsupportedError when the model was not loaded with the attention ATTENTION.
        """
        attention = model.config._attn_implementation
        if attention != ATTENTION:
            raise UnsupportedError(
                f"the model's attention implementation is {attention}, scoring needs {ATTENTION}"
            )
        # Without a configuration the cache keeps all tokens, of layers with sliding windows too.
        cache = DynamicCache()
        tokens = torch.tensor(ids, device=model.device)
        for chunk in tokens[:-1].split(prefill_chunk):
            model(chunk[None], past_key_values=cache, logits_to_keep=1)
        return cls(model, cache, tokens[-1:])

    @property
    def num_layers(self) -> int:
        """The number of the model's layers."""
        return len(self.cache.layers)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values: [num_kv_heads, num_tokens, head_size]."""
        layer = self.cache.layers[index]
        return layer.keys[0], layer.values[0]

    @torch.no_grad()
    def generate(self, max_tokens: int, stop_ids: frozenset[int]) -> tuple[int, ...]:
        """A greedy answer of at most `max_tokens` tokens. It ends before a token of `stop_ids`.

        Raises ScoringError when the model's logits are not finite.
        """
        answer: list[int] = []
        last, num_steps = self.last, 0
        while len(answer) < max_tokens:
            output = self.model(last[None], past_key_values=self.cache, logits_to_keep=1)
            num_steps += 1
            last = _finite(output.logits[0]).argmax(-1)
            if int(last) in stop_ids:
                break
            answer.append(int(last))
        if num_steps:
            self.cache.crop(-num_steps)
        return tuple(answer)

    def answer(self, tokens: Sequence[int], attend: Attend) -> torch.Tensor:
        """Logits [num_rows, vocab_size] float32, one row for each of the answer's `tokens`.

        A row is the model's output for the token before: row 0 is that of the prompt's last token.
        All layers attend by `attend`. Raises ScoringError when the logits are not finite.
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

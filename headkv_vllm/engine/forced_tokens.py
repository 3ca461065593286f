# SPDX-License-Identifier: Apache-2.0
"""Output that begins with given tokens: `vllm serve --logits-processors MODULE:ForcedTokens`.

A question that is forced as output was not in the prompt when that was compressed. A request says
`"vllm_xargs": {"headkv_forced_tokens": [id, ...]}`; requests that do not are left alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from headkv_vllm.engine.logger import logger
from headkv_vllm.errors import shown
from headkv_vllm.request_overrides import FORCED_TOKENS


class ForcedTokens(AdapterLogitsProcessor):
    """Forces one given token per step, and then lets the model sample freely."""

    @classmethod
    @override
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises VLLMValidationError, which the client gets as 400."""
        value = _given(sampling_params)
        if value is None:
            return
        if not _are_token_ids(value):
            raise VLLMValidationError(
                f"{FORCED_TOKENS} is {shown(value)}, expected a list of one or more token ids",
                parameter=FORCED_TOKENS,
            )
        max_tokens = sampling_params.max_tokens
        if max_tokens is not None and len(value) > max_tokens:
            raise VLLMValidationError(
                f"{FORCED_TOKENS} has {len(value)} tokens, but max_tokens is {max_tokens}",
                parameter=FORCED_TOKENS,
            )

    @override
    def is_argmax_invariant(self) -> bool:
        """False, because forced tokens also apply to greedy sampling."""
        return False

    @override
    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The function that changes the logits of a request with `params`, or None."""
        token_ids = _given(params)
        return None if token_ids is None else _Forcing(token_ids)


class _Forcing:
    """Forces the tokens of one request. The length of the output gives the next forced token, so
    forcing also works after a preemption."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids
        self._largest = max(token_ids)

    def __call__(self, output_token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        position = len(output_token_ids)
        if position >= len(self._token_ids) or not self._is_known(position, logits.shape[-1]):
            return logits
        token_id = self._token_ids[position]
        logits.fill_(-torch.inf)
        logits[token_id] = 0
        return logits

    def _is_known(self, position: int, vocabulary: int) -> bool:
        # `validate_params` does not know the vocabulary, and an error here would end the engine
        # for all requests. So nothing is forced for this request, and the log says why.
        if self._largest < vocabulary:
            return True
        if position == 0:
            logger.error(
                "HeadKV: %s has token %d, but the model has %d tokens: nothing is forced",
                FORCED_TOKENS,
                self._largest,
                vocabulary,
            )
        return False


def _given(params: SamplingParams) -> Any:
    return (params.extra_args or {}).get(FORCED_TOKENS)


def _are_token_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(token_id) is int and token_id >= 0 for token_id in value)
    )

# SPDX-License-Identifier: Apache-2.0
"""Whether a waiting request may run beside the running ones, now and when all have grown.

vLLM admits a request when its prompt fits into the pool now. This works if most blocks belong to
prompts. A compressed request holds a fraction of its prompt, so many of them are admitted, and
their answers outgrow the pool. Each preemption then loses the work of a prefill. So this module
forecasts the blocks that compressed requests hold whenever one of them ends, with an expected
answer length. The Past-Future scheduler (arXiv 2507.10150) does so for uncompressed requests.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from vllm.utils.math_utils import cdiv
from vllm.v1.request import Request

from headkv_vllm.engine.kv_cache import HeadKVManager

FIRST_GUESS = 1024
"""Expected tokens of an answer until the first request has ended; at most `max_tokens`."""

NUM_REMEMBERED = 64
"""The expected answer length is the mean of this many latest answers."""


@dataclass(frozen=True)
class Forecast:
    """The blocks of a compressed request now and later.

    num_tokens: tokens of its prompt and its answer so far. num_left: tokens that it is expected to
    generate from now on. num_held: blocks now. num_to_prefill: blocks that it still needs to
    complete its prompt. num_after: blocks for `num_tokens` tokens after its compression.
    is_bounded: whether `num_after` is a maximum, however long its answer is.
    """

    num_tokens: int
    num_left: int
    num_held: int
    num_to_prefill: int
    num_after: int
    is_bounded: bool = False


class Admission:
    """Forecasts the growth of requests from the lengths of the latest answers."""

    def __init__(
        self, manager: HeadKVManager, max_num_batched_tokens: int, max_model_len: int
    ) -> None:
        """max_num_batched_tokens: the limit of a step. max_model_len: the limit of a request."""
        self._manager, self._tokens_of_a_step = manager, max_num_batched_tokens
        self._max_model_len = max_model_len
        self._lengths: deque[int] = deque(maxlen=NUM_REMEMBERED)
        self._usual = FIRST_GUESS

    def record(self, request: Request) -> None:
        """Remember the answer length of a request that has ended."""
        self._lengths.append(request.num_output_tokens)
        self._usual = cdiv(sum(self._lengths), len(self._lengths))

    def num_blocks(self, running: Iterable[Request], waiting: Request, num_missing: int) -> int:
        """Blocks that must be free before `waiting` may run. It needs `num_missing` of them now.

        Uncompressed requests count with the blocks that they hold now, as in vLLM.
        """
        forecasts = [forecast for one in running if (forecast := self._forecast(one))]
        if not forecasts:
            return num_missing
        # The others grow until the prompt of `waiting` is computed and its blocks are free again.
        num_steps = cdiv(waiting.num_tokens, self._tokens_of_a_step) + 2
        soon = sum(self._growth(forecast, num_steps) for forecast in forecasts)
        now = num_missing + soon + sum(forecast.num_to_prefill for forecast in forecasts)
        block_size = self._manager.block_size
        if own := self._forecast(waiting):
            later = peak([*forecasts, own], block_size)
        else:
            later = peak(forecasts, block_size) + num_missing
        return max(now, later - sum(forecast.num_held for forecast in forecasts))

    def _forecast(self, request: Request) -> Forecast | None:
        budget = self._manager.budgets[request.request_id]
        if not budget.compressed:
            return None
        block_size, num_held = self._manager.block_size, self._manager.num_held(request.request_id)
        num_private = self._manager.num_private_blocks(budget)
        num_uncompressed = num_private + cdiv(request.num_tokens, block_size)
        is_complete = request.num_computed_tokens >= request.num_prompt_tokens
        num_to_prefill = 0 if is_complete else max(0, num_uncompressed - num_held)
        num_left, num_tokens = self._num_left(request), request.num_tokens
        if not budget.interval:
            num_after = num_uncompressed - budget.num_full_blocks
            return Forecast(num_tokens, num_left, num_held, num_to_prefill, num_after)
        # Between two compressions its blocks go up and down. Each request may be at its maximum.
        most = self._manager.max_blocks_again(budget)
        if request.num_computed_tokens < budget.first_point:
            most = self._manager.max_blocks(budget, num_tokens + num_left)
        return Forecast(num_tokens, num_left, num_held, num_to_prefill, most, is_bounded=True)

    def _growth(self, forecast: Forecast, num_steps: int) -> int:
        """Blocks that a request needs in the next `num_steps` steps."""
        size, num_tokens = self._manager.block_size, forecast.num_tokens
        num_later = num_tokens + min(num_steps, forecast.num_left)
        growth = cdiv(num_later, size) - cdiv(num_tokens, size)
        if forecast.is_bounded:
            room = forecast.num_after - forecast.num_held - forecast.num_to_prefill
            return max(0, min(growth, room))
        return growth

    def _num_left(self, request: Request) -> int:
        """An answer above the mean length is expected to continue for one block."""
        answer = max(self._usual, request.num_output_tokens + self._manager.block_size)
        room = self._max_model_len - request.num_prompt_tokens
        return int(min(request.max_tokens, answer, room)) - request.num_output_tokens


def peak(forecasts: list[Forecast], block_size: int) -> int:
    """The maximum number of blocks that requests hold at once, if each ends as expected.

    All requests grow by a token per step until one ends, so a peak is always at an end.
    """
    arrays = np.array([(c.num_tokens, c.num_left, c.num_after, c.is_bounded) for c in forecasts])
    num_tokens, num_left, num_after, is_bounded = arrays.T
    ends = num_left[:, None]
    grown = -(-(num_tokens + ends) // block_size) - -(-num_tokens // block_size)
    held = num_after + np.where(is_bounded, 0, grown)
    return int(np.where(num_left >= ends, held, 0).sum(1).max())

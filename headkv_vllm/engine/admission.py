# SPDX-License-Identifier: Apache-2.0
"""How many blocks the requests that run are expected to take yet.

vLLM admits a request when its prompt fits into the pool now. That does for requests that mostly
are their prompt. A compressed one holds a fraction of its prompt, so many of them are admitted,
and what they generate outgrows the pool: each preemption then throws away a whole prefill.
"""

from collections import deque
from collections.abc import Iterable

from vllm.v1.request import Request

from headkv_vllm.engine.kv_cache import HeadKVManager

FIRST_GUESS = 1024
"""Tokens of an answer, as long as none has ended; a request's `max_tokens` is the most."""

NUM_REMEMBERED = 64


class Admission:
    """Guesses how far requests will grow, from how long the last answers were."""

    def __init__(self, manager: HeadKVManager) -> None:
        self._manager = manager
        self._lengths: deque[int] = deque(maxlen=NUM_REMEMBERED)

    def record(self, request: Request) -> None:
        """The request has ended."""
        self._lengths.append(request.num_output_tokens)

    def expected_growth(self, requests: Iterable[Request]) -> int:
        """Blocks that the compressed ones of `requests` are expected to take yet."""
        usual = self._usual_length()
        return sum(
            self._manager.growth(request.request_id, self._expected_tokens(request, usual))
            for request in requests
        )

    def _expected_tokens(self, request: Request, usual: int) -> int:
        """Prompt and answer. An answer longer than usual is expected to go on for a block."""
        answer = max(usual, request.num_output_tokens + self._manager.block_size)
        return int(request.num_prompt_tokens + min(request.max_tokens, answer))

    def _usual_length(self) -> int:
        if not self._lengths:
            return FIRST_GUESS
        return -(-sum(self._lengths) // len(self._lengths))

# SPDX-License-Identifier: Apache-2.0
"""Whether a waiting request may run beside those that run: now, and when all of them have grown.

vLLM admits a request when its prompt fits into the pool now. That does for requests that mostly
are their prompt. A compressed one holds a fraction of its prompt, so many of them are admitted,
and what they generate outgrows the pool: each preemption then throws away a whole prefill. So the
blocks are counted that compressed requests will hold when each of them ends, by a guess at its
answer's length, and what has ended by then has given its own back. The idea, for whole requests,
is that of the Past-Future scheduler (arXiv 2507.10150).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from vllm.utils.math_utils import cdiv
from vllm.v1.request import Request

from headkv_vllm.engine.kv_cache import HeadKVManager

FIRST_GUESS = 1024
"""Tokens of an answer, as long as none has ended; a request's `max_tokens` is the most."""

NUM_REMEMBERED = 64


@dataclass(frozen=True)
class Course:
    """What a compressed request holds, in blocks, and how it goes on.

    num_tokens: of its prompt and its answer so far. num_left: tokens that it is expected to
    generate yet. held: now. reading: more that it takes until its prompt is complete. compressed:
    what it holds for `num_tokens` tokens once its prompt is compressed.
    """

    num_tokens: int
    num_left: int
    held: int
    reading: int
    compressed: int


class Admission:
    """Guesses how far requests will grow, from how long the last answers were."""

    def __init__(
        self, manager: HeadKVManager, max_num_batched_tokens: int, max_model_len: int
    ) -> None:
        """max_num_batched_tokens: of a step. max_model_len: where every request ends."""
        self._manager, self._tokens_of_a_step = manager, max_num_batched_tokens
        self._max_model_len = max_model_len
        self._lengths: deque[int] = deque(maxlen=NUM_REMEMBERED)
        self._usual = FIRST_GUESS

    def record(self, request: Request) -> None:
        """The request has ended."""
        self._lengths.append(request.num_output_tokens)
        self._usual = cdiv(sum(self._lengths), len(self._lengths))

    def num_blocks(self, running: Iterable[Request], waiting: Request, num_missing: int) -> int:
        """Blocks that must be free for `waiting` to run, which takes `num_missing` of them now.

        Requests that are not compressed count with what they hold now, as in vLLM.
        """
        courses = [course for one in running if (course := self._course(one))]
        if not courses:
            return num_missing
        # Until the waiting one has been read and gives its prompt back, the others grow.
        num_steps = cdiv(waiting.num_tokens, self._tokens_of_a_step) + 2
        soon = sum(self._growth(course, num_steps) for course in courses)
        now = num_missing + soon + sum(course.reading for course in courses)
        block_size = self._manager.block_size
        if own := self._course(waiting):
            later = peak([*courses, own], block_size)
        else:
            later = peak(courses, block_size) + num_missing
        return max(now, later - sum(course.held for course in courses))

    def _course(self, request: Request) -> Course | None:
        budget = self._manager.budgets[request.request_id]
        if not budget.compressed:
            return None
        block_size, held = self._manager.block_size, self._manager.num_held(request.request_id)
        whole = budget.num_compressed_blocks + cdiv(request.num_tokens, block_size)
        compressed = whole - budget.num_full_blocks
        is_read = request.num_computed_tokens >= request.num_prompt_tokens
        reading = 0 if is_read else max(0, whole - held)
        return Course(request.num_tokens, self._num_left(request), held, reading, compressed)

    def _growth(self, course: Course, num_steps: int) -> int:
        """Blocks that a request takes in the next `num_steps` steps."""
        size, num_tokens = self._manager.block_size, course.num_tokens
        return cdiv(num_tokens + min(num_steps, course.num_left), size) - cdiv(num_tokens, size)

    def _num_left(self, request: Request) -> int:
        """An answer longer than usual is expected to go on for a block."""
        answer = max(self._usual, request.num_output_tokens + self._manager.block_size)
        room = self._max_model_len - request.num_prompt_tokens
        return int(min(request.max_tokens, answer, room)) - request.num_output_tokens


def peak(courses: list[Course], block_size: int) -> int:
    """The most blocks that requests will hold at once, if each ends when it is expected to.

    Only an end can be a peak: up to it all that are left grow by a token each step.
    """
    arrays = np.array([(c.num_tokens, c.num_left, c.compressed) for c in courses])
    num_tokens, num_left, compressed = arrays.T
    ends = num_left[:, None]
    grown = -(-(num_tokens + ends) // block_size) - -(-num_tokens // block_size)
    return int(np.where(num_left >= ends, compressed + grown, 0).sum(1).max())

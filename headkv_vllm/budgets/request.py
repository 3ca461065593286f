# SPDX-License-Identifier: Apache-2.0
"""How many blocks of its prompt a request gives up, and how many compressed blocks replace them."""

from dataclasses import dataclass, replace
from math import floor
from typing import Literal, Self

from headkv_vllm.config import PolicyName, Settings

SkipReason = Literal["off", "too_short", "short_answer", "no_room", "resumable"]
"""Why a request is not compressed.

off: its budget is 0. too_short: compression would save no block. short_answer: no token would be
computed after the compression. no_room: the whole pool cannot hold its tokens and its compressed
blocks. resumable: its prompt may still grow.
"""


@dataclass(frozen=True)
class RequestBudget:
    """The budget of one request. It follows from the prompt's length and the settings.

    num_prompt_tokens: T, the number of prompt tokens.
    num_compressed_blocks: K, the number of vLLM blocks that replace the full ones; 0 if the
        request is not compressed. A vLLM block has one head block for each layer and KV head.
    num_full_blocks: F, the number of blocks before the observation window when the request is
        compressed for the first time. A compressed request gives them up.
    policy: the policy that allocates the request's head blocks.
    skip_reason: why the request is not compressed; None if it is compressed.
    delay: how many tokens after the end of its prompt the request is compressed for the first
        time; below 0 if it is compressed before.
    interval: the number of blocks after which the request is compressed again; 0 for never.
    """

    num_prompt_tokens: int
    num_compressed_blocks: int
    num_full_blocks: int
    policy: PolicyName = "headkv"
    skip_reason: SkipReason | None = None
    delay: int = 0
    interval: int = 0

    @property
    def compressed(self) -> bool:
        return self.num_compressed_blocks > 0

    @property
    def first_point(self) -> int:
        """The number of tokens at which the request is compressed for the first time."""
        return self.num_prompt_tokens + self.delay

    def skipped(self, reason: SkipReason) -> Self:
        """The budget of the same request when it is not compressed."""
        return replace(self, num_compressed_blocks=0, skip_reason=reason, delay=0, interval=0)

    def is_by_prompt(self, point: int) -> bool:
        """Whether the step that completes the prompt compresses the request at this point."""
        return point == self.first_point == self.num_prompt_tokens

    def num_replaced_blocks(self, num_tokens: int, block_size: int) -> int:
        """The blocks that head blocks have replaced when `num_tokens` tokens are computed.

        The step that completes a prompt compresses it. A step that computes the first token after
        a later point compresses the request before it attends.
        """
        if not self.compressed or num_tokens < self.first_point:
            return 0
        if num_tokens == self.first_point:
            return self.num_full_blocks if self.is_by_prompt(num_tokens) else 0
        if not self.interval:
            return self.num_full_blocks
        num_later = (num_tokens - 1 - self.first_point) // (self.interval * block_size)
        return self.num_full_blocks + num_later * self.interval

    def next_point(self, num_tokens: int, block_size: int) -> int | None:
        """The next compression of a request of `num_tokens` tokens, in tokens; None for none."""
        if not self.compressed:
            return None
        if num_tokens < self.first_point:
            return self.first_point
        if not self.interval:
            return None
        every = self.interval * block_size
        return self.first_point + ((num_tokens - self.first_point) // every + 1) * every

    def num_private_blocks(self, num_query_blocks: int) -> int:
        """M: the compressed blocks, and those for the queries of a request compressed again."""
        if not self.compressed:
            return 0
        return self.num_compressed_blocks + (num_query_blocks if self.interval else 0)

    def max_blocks(self, num_tokens: int, block_size: int, num_query_blocks: int) -> int:
        """The maximum that a request of `num_tokens` tokens in total holds at a time.

        After a preemption a request that is compressed once holds all its tokens and its compressed
        blocks. A request that is compressed again never holds the blocks of all its tokens.
        """
        num_private = self.num_private_blocks(num_query_blocks)
        num_blocks = num_private + -(-num_tokens // block_size)
        if not self.interval:
            return num_blocks
        # In the step after a point a request still holds what the compression replaces.
        before = num_private + -(-self.first_point // block_size) + 1
        return min(num_blocks, max(before, self.max_blocks_again(block_size, num_query_blocks)))

    def max_blocks_again(self, block_size: int, num_query_blocks: int) -> int:
        """The maximum that a request holds between two compressions, both included."""
        tail = -(-self.first_point // block_size) - self.num_full_blocks
        return self.num_private_blocks(num_query_blocks) + tail + self.interval + 1


def full_blocks(num_tokens: int, window: int, block_size: int) -> int:
    """F: the number of blocks before the observation window, which is at the end."""
    return max(0, (num_tokens - window) // block_size)


def first_point(
    num_prompt_tokens: int,
    num_compressed_blocks: int,
    interval: int,
    settings: Settings,
    block_size: int,
) -> int:
    """The number of tokens at which a request is compressed for the first time.

    A prompt is compressed when it is complete. If generated tokens are compressed too, a request
    first grows to twice its budget. With fewer tokens the heads could not differ much in what they
    keep, and a request keeps its first allocation. With `compress_prefill` a prompt is compressed
    when it has that many tokens, and then again and again.
    """
    if interval == 0:
        return num_prompt_tokens
    grown = 2 * num_compressed_blocks * block_size + settings.window
    return grown if settings.compress_prefill else max(num_prompt_tokens, grown)


def queries_per_block(group_size: int, block_size: int) -> int:
    """The tokens whose queries fit in a block; 0 if not even those of one token do.

    group_size: query heads per KV head. A head block has room for `2 * block_size` vectors.
    """
    return 2 * block_size // group_size


def num_query_blocks(group_size: int, window: int, block_size: int) -> int:
    """The blocks that hold the queries of an observation window of generated tokens.

    group_size: query heads per KV head.
    Returns 0 if not even the queries of one token fit in a block.
    """
    per_block = queries_per_block(group_size, block_size)
    return -(-window // per_block) if per_block else 0


def request_budget(settings: Settings, num_prompt_tokens: int, block_size: int) -> RequestBudget:
    """The budget of a request: K and F, in blocks of `block_size` tokens.

    K is the budget without the observation window, in blocks, and at least `min_blocks`. A
    request with F <= K saves no block, so it is not compressed, and its K is 0. With
    `settings.budget` of 0 no request is compressed.
    """
    num_blocks = _budget_blocks(settings, num_prompt_tokens, block_size)
    interval = _interval(settings, block_size)
    point = first_point(num_prompt_tokens, num_blocks, interval, settings, block_size)
    num_full_blocks = full_blocks(point, settings.window, block_size)
    budget = RequestBudget(
        num_prompt_tokens,
        num_blocks,
        num_full_blocks,
        settings.policy,
        delay=point - num_prompt_tokens,
        interval=interval,
    )
    if num_blocks == 0:
        return budget.skipped("off")
    return budget if num_blocks < num_full_blocks else budget.skipped("too_short")


def max_compressed_blocks(settings: Settings, max_num_prompt_tokens: int, block_size: int) -> int:
    """The maximum K of all prompts of at most `max_num_prompt_tokens` tokens.

    K grows with the prompt's length and is below F, so the longest prompt has the maximum.
    """
    num_blocks = _budget_blocks(settings, max_num_prompt_tokens, block_size)
    num_full_blocks = full_blocks(max_num_prompt_tokens, settings.window, block_size)
    return max(0, min(num_blocks, num_full_blocks - 1))


def max_requested_blocks(settings: Settings, max_num_prompt_tokens: int, block_size: int) -> int:
    """The maximum K of all prompts with any budget that a request may ask for."""
    max_budget = max_num_prompt_tokens if settings.max_budget is None else settings.max_budget
    largest = settings.model_copy(update={"budget": max_budget, "keep_ratio": None})
    return max_compressed_blocks(largest, max_num_prompt_tokens, block_size)


def _interval(settings: Settings, block_size: int) -> int:
    """The blocks of tokens between two compressions: no more tokens than `compress_every`.

    But at least a block, and at least an observation window.
    """
    if settings.compress_every == 0:
        return 0
    return max(1, settings.compress_every // block_size, -(-settings.window // block_size))


def _budget_blocks(settings: Settings, num_prompt_tokens: int, block_size: int) -> int:
    """The budget in blocks: K, if it is below F. 0 if `settings.budget` is 0."""
    if settings.budget == 0:
        return 0
    if settings.keep_ratio is not None:
        tokens = settings.clip_budget(floor(settings.keep_ratio * num_prompt_tokens))
    else:
        assert settings.budget is not None, "Settings have a budget or a ratio"
        tokens = settings.budget
    return max(settings.min_blocks, (tokens - settings.window) // block_size)

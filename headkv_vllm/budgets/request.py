# SPDX-License-Identifier: Apache-2.0
"""How many blocks of its prompt a request gives up, and how many compressed blocks replace them."""

from dataclasses import dataclass, replace
from math import floor
from typing import Literal, Self

from headkv_vllm.config import PolicyName, Settings

SkipReason = Literal["off", "too_short", "no_room", "resumable"]
"""Why a request is not compressed.

off: its budget is 0. too_short: compression would save no block. no_room: the whole pool cannot
hold its tokens and its compressed blocks. resumable: its prompt may still grow.
"""


@dataclass(frozen=True)
class RequestBudget:
    """The budget of one request. It follows from the prompt's length and the settings.

    num_prompt_tokens: T, the number of prompt tokens.
    num_compressed_blocks: K, the number of vLLM blocks that replace the full ones; 0 if the
        request is not compressed. A vLLM block has one head block for each layer and KV head.
    num_full_blocks: F, the number of prompt blocks before the observation window. A compressed
        request gives them up.
    policy: the policy that allocates the request's head blocks.
    skip_reason: why the request is not compressed; None if it is compressed.
    """

    num_prompt_tokens: int
    num_compressed_blocks: int
    num_full_blocks: int
    policy: PolicyName = "headkv"
    skip_reason: SkipReason | None = None

    @property
    def compressed(self) -> bool:
        return self.num_compressed_blocks > 0

    def skipped(self, reason: SkipReason) -> Self:
        """The budget of the same request when it is not compressed."""
        return replace(self, num_compressed_blocks=0, skip_reason=reason)


def full_blocks(num_prompt_tokens: int, window: int, block_size: int) -> int:
    """F: the number of prompt blocks before the observation window."""
    return max(0, (num_prompt_tokens - window) // block_size)


def request_budget(settings: Settings, num_prompt_tokens: int, block_size: int) -> RequestBudget:
    """The budget of a request: K and F, in blocks of `block_size` tokens.

    K is the budget without the observation window, in blocks, and at least `min_blocks`. A
    request with F <= K saves no block, so it is not compressed, and its K is 0. With
    `settings.budget` of 0 no request is compressed.
    """
    num_full_blocks = full_blocks(num_prompt_tokens, settings.window, block_size)
    num_blocks = _budget_blocks(settings, num_prompt_tokens, block_size)
    budget = RequestBudget(num_prompt_tokens, num_blocks, num_full_blocks, settings.policy)
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

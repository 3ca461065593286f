# SPDX-License-Identifier: Apache-2.0
"""How many blocks a request gives up, and how many it keeps in their place."""

from dataclasses import dataclass, replace
from math import floor
from typing import Literal, Self

from headkv_vllm.config import PolicyName, Settings

SkipReason = Literal["off", "too_short", "no_room", "resumable"]
"""Why a request is not compressed: its budget is 0; it has nothing to gain; the whole pool could
not hold its prompt and its compressed blocks; or its prompt may still grow."""


@dataclass(frozen=True)
class RequestBudget:
    """What a request's prompt length and its settings say about it.

    num_prompt_tokens: T, the tokens of the prompt.
    num_compressed_blocks: K, the vLLM blocks that take the place of the full ones; 0 when the
        request is not compressed. A vLLM block is one head block for every layer and KV head.
    num_full_blocks: F, the leading prompt blocks that hold no token of the window, and that
        are given up when the request is compressed.
    policy: how its head blocks are shared out.
    skip_reason: None when the request is compressed.
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
        """The same request, left as it is."""
        return replace(self, num_compressed_blocks=0, skip_reason=reason)


def full_blocks(num_prompt_tokens: int, window: int, block_size: int) -> int:
    """F: the prompt's leading blocks that hold no token of the window."""
    return max(0, (num_prompt_tokens - window) // block_size)


def request_budget(settings: Settings, num_prompt_tokens: int, block_size: int) -> RequestBudget:
    """K and F of a prompt of `num_prompt_tokens`, in blocks of `block_size` tokens.

    K is the budget without the window, in blocks, and at least `min_blocks`. A request with
    F <= K has nothing to gain and is left as it is (K = 0), and so is every request when
    `settings.budget` is 0.
    """
    num_full_blocks = full_blocks(num_prompt_tokens, settings.window, block_size)
    wanted = _wanted_blocks(settings, num_prompt_tokens, block_size)
    budget = RequestBudget(num_prompt_tokens, wanted, num_full_blocks, settings.policy)
    if wanted == 0:
        return budget.skipped("off")
    return budget if wanted < num_full_blocks else budget.skipped("too_short")


def max_compressed_blocks(settings: Settings, max_num_prompt_tokens: int, block_size: int) -> int:
    """The most compressed blocks (K) of any prompt of at most `max_num_prompt_tokens`.

    K grows with the prompt's length and stays below F; both bounds are those of the longest.
    """
    wanted = _wanted_blocks(settings, max_num_prompt_tokens, block_size)
    num_full_blocks = full_blocks(max_num_prompt_tokens, settings.window, block_size)
    return max(0, min(wanted, num_full_blocks - 1))


def max_requested_blocks(settings: Settings, max_num_prompt_tokens: int, block_size: int) -> int:
    """The same, whatever budget a request may ask for in place of that of `settings`."""
    most = max_num_prompt_tokens if settings.max_budget is None else settings.max_budget
    widest = settings.model_copy(update={"budget": most, "ratio": None})
    return max_compressed_blocks(widest, max_num_prompt_tokens, block_size)


def _wanted_blocks(settings: Settings, num_prompt_tokens: int, block_size: int) -> int:
    """K where there is something to gain, and 0 where `settings.budget` is 0."""
    if settings.budget == 0:
        return 0
    if settings.ratio is not None:
        tokens = settings.within_bounds(floor(settings.ratio * num_prompt_tokens))
    else:
        assert settings.budget is not None, "Settings hold a budget or a ratio"
        tokens = settings.budget
    return max(settings.min_blocks, (tokens - settings.window) // block_size)

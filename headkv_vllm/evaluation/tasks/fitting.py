# SPDX-License-Identifier: Apache-2.0
"""Makes prompts as long as allowed, as the tokenizer counts."""

from collections.abc import Callable
from typing import Final

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.samples import Tokenizer

_FIRST_GUESS: Final = 64
_MARGIN: Final = 1.05
"""A guess that is a little too high bounds the search from above at once."""


def largest_fit(
    measure: Callable[[int], int], limit: int, max_size: int | None = None
) -> int | None:
    """The largest size up to `max_size` with `measure(size) <= limit`; None if 0 does not fit.

    `measure` should be nearly proportional to the size: then a few calls are enough. If `measure`
    does not always rise, the returned size still fits.
    """
    low, low_measure = 0, measure(0)
    if low_measure > limit:
        return None
    high = _FIRST_GUESS
    while True:
        high = high if max_size is None else min(high, max_size)
        if high <= low:
            return low
        high_measure = measure(high)
        if high_measure > limit:
            return _search(measure, limit, (low, low_measure), (high, high_measure))
        low, low_measure = high, high_measure
        high = max(high + 1, round(_MARGIN * high * limit / max(high_measure, 1)))


def _search(
    measure: Callable[[int], int], limit: int, low: tuple[int, int], high: tuple[int, int]
) -> int:
    """Search between `low`, a `(size, measure)` that fits, and `high`, which does not."""
    halve = False
    while high[0] - low[0] > 1:
        part = (limit - low[1]) / (high[1] - low[1])
        step = 0.5 if halve else part
        size = low[0] + min(max(round(step * (high[0] - low[0])), 1), high[0] - low[0] - 1)
        found = size, measure(size)
        halve = not halve and abs(found[1] - limit) > abs(high[1] - low[1]) / 4
        low, high = (found, high) if found[1] <= limit else (low, found)
    return low[0]


def cut_middle(context: str, question: str, length: int, tokenizer: Tokenizer) -> str | None:
    """`context` without its middle, so that the prompt has at most `length` tokens; 0: no limit.

    None if the question alone is longer. The benchmarks do the same with texts that are too long
    for a model: they keep equal parts of the start and the end.
    """
    if not length or len(tokenizer.encode(context + question)) <= length:
        return context
    ids = tokenizer.encode(context, add_special_tokens=False)

    def keep(size: int) -> str:
        ends = ids[: (size + 1) // 2], ids[len(ids) - size // 2 :]
        return "".join(tokenizer.decode(end, skip_special_tokens=True) for end in ends)

    def measure(size: int) -> int:
        return len(tokenizer.encode(keep(size) + question))

    size = largest_fit(measure, length, len(ids))
    return None if size is None else keep(size)


def check_numbers(n: int, length: int, seed: int) -> None:
    """Raises SettingsError when one of the numbers is below zero."""
    for name, value in (("n", n), ("length", length), ("seed", seed)):
        if value < 0:
            raise SettingsError(f"{name} is {value}, allowed are integers from 0")

# SPDX-License-Identifier: Apache-2.0
"""What is compared with kvpress: which policy with which press, at which number of kept tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, nextafter
from typing import Any, Final, Literal

import numpy as np

from headkv_vllm.budgets.plan import make_plan
from headkv_vllm.config import Settings
from headkv_vllm.needle.tasks import Task
from headkv_vllm.scores.identity import ModelIdentity

WINDOW: Final = 8
KERNEL_SIZE: Final = 7
NUM_SINK: Final = 4
BLOCK_SIZE: Final = 16
BETA: Final = 20
"""Of PyramidKV, on both sides: the last layer has one part in so many of the mean."""

Press = Literal["snapkv", "adakv", "pyramidkv", "streaming"]


@dataclass(frozen=True)
class Ours:
    """One way to run the engine."""

    policy: str
    pooling: str
    budget: int

    def settings(self) -> dict[str, Any]:
        """As `--additional-config` takes them."""
        return {
            "policy": self.policy,
            "pooling": self.pooling,
            "budget": self.budget,
            "window": WINDOW,
            "kernel_size": KERNEL_SIZE,
            "sink": NUM_SINK,
        }

    def __str__(self) -> str:
        if self.budget == 0:
            return "whole prompt"
        return self.policy if self.policy == "streaming" else f"{self.policy}, {self.pooling}"


@dataclass(frozen=True)
class Theirs:
    """One way to run kvpress, for prompts of one length. num_kept: on average per KV head."""

    press: Press
    num_kept: int
    num_tokens: int
    beta: int = BETA

    def arguments(self) -> dict[str, Any]:
        """As `kvpress_side.py` reads them."""
        return {
            "press": self.press,
            "num_kept": self.num_kept,
            "num_tokens": self.num_tokens,
            "compression_ratio": compression_ratio(self.num_kept, self.num_tokens),
            "window_size": WINDOW,
            "kernel_size": KERNEL_SIZE,
            "n_sink": NUM_SINK,
            "beta": self.beta,
        }

    def __str__(self) -> str:
        if self.num_kept == self.num_tokens:
            return "whole prompt"
        return self.press if self.beta == BETA else f"{self.press}, beta {self.beta}"


@dataclass(frozen=True)
class Cell:
    """One line of the report: both sides on the same prompts."""

    task: Task
    num_tokens: int
    ours: Ours
    theirs: Theirs


PRESSES: Final[tuple[tuple[str, str, Press], ...]] = (
    ("uniform", "avg", "snapkv"),
    ("uniform", "max", "snapkv"),
    ("adakv", "avg", "adakv"),
    ("adakv", "max", "adakv"),
    ("pyramidkv", "avg", "pyramidkv"),
    ("pyramidkv", "max", "pyramidkv"),
    ("streaming", "max", "streaming"),
)
"""Policy and pooling of ours, and what of kvpress stands against it."""


def cells(
    tasks: Sequence[Task], num_tokens: int, budgets: Sequence[int], identity: ModelIdentity
) -> Iterator[Cell]:
    """Whole prompts and PRESSES; and two of them again at a length that leaves no tail.

    There both sides keep the window and nothing else besides what they select, which with mean
    pooling is by the same scores.
    """
    whole = Ours("uniform", "avg", 0), Theirs("snapkv", num_tokens, num_tokens)
    yield from (Cell(task, num_tokens, *whole) for task in tasks)
    for policy, pooling, press in PRESSES:
        for budget in budgets:
            ours = Ours(policy, pooling, budget)
            again = pooling == "avg" and press != "pyramidkv"
            for length in sorted({num_tokens, even_length(num_tokens) if again else num_tokens}):
                num_kept = kept_tokens(ours, length, identity)
                for beta in betas(press, num_kept):
                    theirs = Theirs(press, num_kept, length, beta)
                    yield from (Cell(task, length, ours, theirs) for task in tasks)


def even_length(num_tokens: int) -> int:
    """The shortest length of at least `num_tokens` that is whole blocks and the window."""
    return num_tokens + (WINDOW - num_tokens) % BLOCK_SIZE


def kept_tokens(ours: Ours, num_tokens: int, identity: ModelIdentity) -> int:
    """Prompt tokens that the engine keeps per KV head on average, window included.

    The policies compared use no head scores. Raises SettingsError for a budget that is none.
    """
    plan = make_plan(
        np.ones((identity.num_layers, identity.num_kv_heads)),
        Settings.parse(ours.settings()),
        num_tokens,
        BLOCK_SIZE,
        identity.head_size,
        bytes_per_element=4,
    )
    num_kept = int(plan.mean_kept_tokens)
    assert num_kept == plan.mean_kept_tokens, "blocks are dealt out to the last one"
    return num_kept


def compression_ratio(num_kept: int, num_tokens: int) -> float:
    """The `compression_ratio` at which a press keeps `num_kept` of `num_tokens`, to the token.

    A press rounds `num_tokens * (1 - compression_ratio)` down, in floating point.
    """
    ratio = 1 - num_kept / num_tokens
    while floor(num_tokens * (1 - ratio)) < num_kept:
        ratio = nextafter(ratio, 0)
    return ratio


def betas(press: Press, num_kept: int) -> list[int]:
    """BETA; and for PyramidKV, where that is too steep for kvpress, the steepest that is not.

    Its PyramidKVPress keeps the same for all layers when the last would get less than a window.
    """
    steepest = num_kept // WINDOW
    return [BETA, steepest] if press == "pyramidkv" and steepest < BETA else [BETA]

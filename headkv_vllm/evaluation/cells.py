# SPDX-License-Identifier: Apache-2.0
"""The grid of an evaluation: tasks and lengths, each under several compressions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headkv_vllm.config import Settings
from headkv_vllm.request_overrides import BUDGET, KEEP_RATIO, POLICY

FULL: Final = "full"
"""The whole cache: of stock vLLM, unless told otherwise."""
GIVEN: Final = "given"
"""Whatever a server that the user started does."""

Budget = int | float | None
"""Tokens per KV head as an int, a part of the prompt as a float, None where it means nothing."""


@dataclass(frozen=True)
class Compression:
    """What a server does with a prompt.

    policy: FULL, GIVEN, or one of the policies in the settings.
    """

    policy: str
    budget: Budget = None

    def __str__(self) -> str:
        return self.policy if self.budget is None else f"{self.policy} {self.budget}"

    @property
    def is_compressed(self) -> bool:
        """Whether the prompt is for our backend, so far as this run knows."""
        return self.policy not in (FULL, GIVEN)

    def settings(self, common: Mapping[str, Any]) -> Settings:
        """`common` with this policy and budget, checked. Raises SettingsError."""
        assert self.is_compressed and self.budget is not None
        name = "budget" if isinstance(self.budget, int) else "keep_ratio"
        return Settings.parse({**common, "policy": self.policy, name: self.budget})

    def request_arguments(self) -> dict[str, Any]:
        """What a request to our server asks for, as its `vllm_xargs`."""
        if not self.is_compressed:
            return {BUDGET: 0}
        return {
            POLICY: self.policy,
            BUDGET if isinstance(self.budget, int) else KEEP_RATIO: self.budget,
        }


@dataclass(frozen=True)
class Cell:
    """One number of the report: the mean score of a task's samples of one length."""

    task: str
    length: int
    policy: str
    budget: Budget = None

    @property
    def compression(self) -> Compression:
        """What the server that is asked does."""
        return Compression(self.policy, self.budget)


def compressions(policies: Sequence[str], budgets: Sequence[int | float]) -> list[Compression]:
    """Each policy with each budget, in that order; FULL once."""
    return [
        Compression(policy, budget)
        for policy in policies
        for budget in ([None] if policy == FULL else budgets)
    ]


def grid(
    tasks: Sequence[str], lengths: Sequence[int], compressed: Sequence[Compression]
) -> list[Cell]:
    """All cells, compression by compression."""
    return [
        Cell(task, length, one.policy, one.budget)
        for one in compressed
        for task in tasks
        for length in lengths
    ]

# SPDX-License-Identifier: Apache-2.0
"""The grid of an evaluation: tasks and lengths, each asked of several servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headkv_vllm.config import Settings

FULL: Final = "full"
"""Stock vLLM, which keeps all of a prompt."""
GIVEN: Final = "given"
"""Whatever a server that the user started does."""

Budget = int | float | None
"""Tokens per KV head as an int, a part of the prompt as a float, None where it means nothing."""


@dataclass(frozen=True)
class Compression:
    """What one server does with its prompts. A run starts one server for each of these.

    policy: FULL, GIVEN, or one of the policies in the settings.
    """

    policy: str
    budget: Budget = None

    def __str__(self) -> str:
        return self.policy if self.budget is None else f"{self.policy} {self.budget}"

    @property
    def is_compressed(self) -> bool:
        """Whether the server runs our backend, so far as this run knows."""
        return self.policy not in (FULL, GIVEN)

    def settings(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """`common` with this policy and budget, as `--additional-config` takes them."""
        assert self.is_compressed and self.budget is not None
        name = "budget" if isinstance(self.budget, int) else "ratio"
        return {**common, "policy": self.policy, name: self.budget}

    def parsed(self, common: Mapping[str, Any]) -> Settings:
        """The same, checked. Raises SettingsError."""
        return Settings.parse(self.settings(common))


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
    tasks: Sequence[str], lengths: Sequence[int], servers: Sequence[Compression]
) -> list[Cell]:
    """All cells, server by server, so that each is started once."""
    return [
        Cell(task, length, server.policy, server.budget)
        for server in servers
        for task in tasks
        for length in lengths
    ]

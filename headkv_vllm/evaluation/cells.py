# SPDX-License-Identifier: Apache-2.0
"""The grid of an evaluation: each task and length with several compressions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headkv_vllm.config import Settings
from headkv_vllm.request_overrides import BUDGET, KEEP_RATIO, POLICY

FULL: Final = "full"
"""The full cache, without compression. Stock vLLM serves it unless `--no-stock` is given."""
GIVEN: Final = "given"
"""The unknown compression of a server that the user started."""

Budget = int | float | None
"""An int is tokens per KV head, a float is a part of the prompt. None if there is no budget."""


@dataclass(frozen=True)
class CellCompression:
    """How a cell's server compresses prompts.

    policy: FULL, GIVEN, or one of the policies in the settings.
    """

    policy: str
    budget: Budget = None

    def __str__(self) -> str:
        return self.policy if self.budget is None else f"{self.policy} {self.budget}"

    @property
    def is_compressed(self) -> bool:
        """Whether our backend compresses the prompt, as far as this run knows."""
        return self.policy not in (FULL, GIVEN)

    def settings(self, common: Mapping[str, Any]) -> Settings:
        """The settings `common` with this policy and budget. Raises SettingsError."""
        assert self.is_compressed and self.budget is not None
        name = "budget" if isinstance(self.budget, int) else "keep_ratio"
        return Settings.parse({**common, "policy": self.policy, name: self.budget})

    def request_arguments(self) -> dict[str, Any]:
        """The `vllm_xargs` of a request to our server."""
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
    def compression(self) -> CellCompression:
        """How the server compresses the prompts of this cell."""
        return CellCompression(self.policy, self.budget)


def compressions(policies: Sequence[str], budgets: Sequence[int | float]) -> list[CellCompression]:
    """Each policy with each budget, in that order; FULL once."""
    return [
        CellCompression(policy, budget)
        for policy in policies
        for budget in ([None] if policy == FULL else budgets)
    ]


def grid(
    tasks: Sequence[str], lengths: Sequence[int], compressed: Sequence[CellCompression]
) -> list[Cell]:
    """All cells, ordered by compression."""
    return [
        Cell(task, length, one.policy, one.budget)
        for one in compressed
        for task in tasks
        for length in lengths
    ]

# SPDX-License-Identifier: Apache-2.0
"""What a prompt holds in the KV cache, by plan: the budgets' arithmetic, which is exact."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from headkv_vllm.budgets.plan import make_plan
from headkv_vllm.config import Settings
from headkv_vllm.evaluation.cells import Compression
from headkv_vllm.scores.head_scores import HeadScores, resolve
from headkv_vllm.scores.identity import ModelIdentity, identify_checkpoint


@dataclass(frozen=True)
class Memory:
    """Bytes over all layers and ranks: what a prompt holds, and what it would in stock vLLM."""

    kept_bytes: int
    full_bytes: int


class MemoryPlans:
    """`budgets.plan.make_plan` for one model and each of the servers that are compared.

    headkv_scores: what the settings mean by "scores", whichever policies are compared.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        servers: Iterable[Compression],
        settings: Mapping[str, Any],
        block_size: int,
        bytes_per_element: int,
    ) -> None:
        """Raises SettingsError and ScoreFileError, as the server would."""
        self.identity = identity
        self._block_size, self._bytes_per_element = block_size, bytes_per_element
        self._settings = {
            server: server.parsed(settings) if server.is_compressed else Settings(budget=0)
            for server in servers
        }
        self.scores = {
            server: resolve(parsed, identity) for server, parsed in self._settings.items()
        }
        self.headkv_scores = resolve(Settings.parse({**settings, "policy": "headkv"}), identity)
        self.of = cache(self._of)

    @classmethod
    def of_checkpoint(
        cls,
        folder: Path,
        servers: Iterable[Compression],
        settings: Mapping[str, Any],
        block_size: int,
        bytes_per_element: int,
    ) -> "MemoryPlans":
        """For the checkpoint in `folder`. Raises ScoreFileError, too, where it is none."""
        identity = identify_checkpoint(folder)
        return cls(identity, servers, settings, block_size, bytes_per_element)

    def warnings(self) -> list[str]:
        """What the scores' resolution warns of, each once, where a policy uses scores."""
        found = (
            self.scores[server].warning
            for server, parsed in self._settings.items()
            if parsed.uses_scores and server.is_compressed
        )
        return list(dict.fromkeys(text for text in found if text is not None))

    def sources(self) -> dict[str, str]:
        """Where the head scores of each policy come from, by its name."""
        return {
            server.policy: self.scores[server].source
            for server, parsed in self._settings.items()
            if parsed.uses_scores and server.is_compressed
        }

    def _of(self, server: Compression, num_prompt_tokens: int) -> Memory:
        plan = make_plan(
            self.scores[server].values,
            self._settings[server],
            num_prompt_tokens,
            self._block_size,
            self.identity.head_size,
            self._bytes_per_element,
        )
        return Memory(plan.kv_bytes_held, plan.kv_bytes_stock)


def scores_digest(scores: HeadScores) -> str:
    """16 hex digits over the values."""
    return sha256(scores.values.tobytes()).hexdigest()[:16]

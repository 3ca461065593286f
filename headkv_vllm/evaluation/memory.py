# SPDX-License-Identifier: Apache-2.0
"""What a prompt holds in the KV cache, by plan: the budgets' arithmetic, which is exact.

The server's own counters say afterwards whether it was so, see `check_saved`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from headkv_vllm.budgets.plan import make_plan
from headkv_vllm.config import Settings
from headkv_vllm.engine.metrics import definitions as metrics
from headkv_vllm.evaluation.cells import Compression
from headkv_vllm.evaluation.results import EvaluationError
from headkv_vllm.head_scores.identity import ModelIdentity, identify_checkpoint
from headkv_vllm.head_scores.scores import HeadScores, resolve


@dataclass(frozen=True)
class Memory:
    """What a prompt holds.

    kept_bytes, full_bytes: over all layers and ranks; and what it would hold in stock vLLM.
    kept_tokens: per KV head on average.
    """

    kept_bytes: int
    full_bytes: int
    kept_tokens: float


class MemoryPlans:
    """`budgets.plan.make_plan` for one model and each of the compressions that are compared.

    headkv_scores: what the settings mean by "scores", whichever policies are compared.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        compressions: Iterable[Compression],
        settings: Mapping[str, Any],
        block_size: int,
        bytes_per_element: int,
    ) -> None:
        """Raises SettingsError and ScoreFileError, as the server would."""
        self.identity = identity
        self._block_size, self._bytes_per_element = block_size, bytes_per_element
        self._settings = {
            one: one.settings(settings) if one.is_compressed else Settings(budget=0)
            for one in compressions
        }
        self.scores = {one: resolve(parsed, identity) for one, parsed in self._settings.items()}
        self.headkv_scores = resolve(Settings.parse({**settings, "policy": "headkv"}), identity)
        self.of = cache(self._of)

    @classmethod
    def of_checkpoint(
        cls,
        folder: Path,
        compressions: Iterable[Compression],
        settings: Mapping[str, Any],
        block_size: int,
        bytes_per_element: int,
    ) -> "MemoryPlans":
        """For the checkpoint in `folder`. Raises ScoreFileError, too, where it is none."""
        identity = identify_checkpoint(folder)
        return cls(identity, compressions, settings, block_size, bytes_per_element)

    def warnings(self) -> list[str]:
        """What the scores' resolution warns of, each once, where a policy uses scores."""
        found = (
            self.scores[one].warning
            for one, parsed in self._settings.items()
            if parsed.uses_scores and one.is_compressed
        )
        return list(dict.fromkeys(text for text in found if text is not None))

    def sources(self) -> dict[str, str]:
        """Where the head scores of each policy come from, by its name."""
        return {
            one.policy: self.scores[one].source
            for one, parsed in self._settings.items()
            if parsed.uses_scores and one.is_compressed
        }

    @property
    def token_bytes(self) -> int:
        """Of one token over all layers and KV heads."""
        identity = self.identity
        num_heads = identity.num_layers * identity.num_kv_heads
        return 2 * self._bytes_per_element * identity.head_size * num_heads

    def _of(self, compression: Compression, num_prompt_tokens: int) -> Memory:
        plan = make_plan(
            self.scores[compression].values,
            self._settings[compression],
            num_prompt_tokens,
            self._block_size,
            self.identity.head_size,
            self._bytes_per_element,
        )
        return Memory(plan.kv_bytes_held, plan.kv_bytes_stock, plan.mean_kept_tokens)


def check_saved(url: str, num_bytes: int, token_bytes: int) -> str | None:
    """A warning where the server at `url` did not give up `num_bytes` of all its prompts.

    token_bytes: see `MemoryPlans.token_bytes`. Raises EvaluationError where it shows no metrics.
    """
    try:
        text = httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text
    except httpx.HTTPError as error:
        raise EvaluationError(f"the server at {url} shows no metrics: {error}") from None
    total: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            total[sample.name] += sample.value
    saved = (total[metrics.PROMPT_TOKENS.name] - total[metrics.KEPT_TOKENS.name]) * token_bytes
    if saved == num_bytes:
        return None
    return (
        f"the server gave {saved / 1024:,.0f} KiB of the prompts up and not the "
        f"{num_bytes / 1024:,.0f} that were planned, so kept KiB are wrong for some: a prompt "
        "stays whole where the pool has no room for it and for what is kept of it"
    )


def scores_digest(scores: HeadScores) -> str:
    """16 hex digits over the values."""
    return sha256(scores.values.tobytes()).hexdigest()[:16]

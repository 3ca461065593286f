# SPDX-License-Identifier: Apache-2.0
"""The KV memory of each prompt, calculated from the budgets. The calculation is exact.

After the run, `check_saved` compares it with the server's own counters.
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
from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.cells import CellCompression
from headkv_vllm.head_scores.identity import ModelIdentity, identify_checkpoint
from headkv_vllm.head_scores.scores import HeadScores, resolve


@dataclass(frozen=True)
class PromptMemory:
    """The KV memory of a prompt, over all layers and ranks.

    kept_bytes: with compression. full_bytes: in stock vLLM.
    kept_tokens: kept tokens per KV head, on average.
    """

    kept_bytes: int
    full_bytes: int
    kept_tokens: float


class MemoryPlans:
    """`budgets.plan.make_plan` for one model and each compression of the evaluation.

    headkv_scores: the head scores that the settings select, also when no policy uses them.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        compressions: Iterable[CellCompression],
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
        self.for_prompt = cache(self._for_prompt)

    @classmethod
    def from_checkpoint(
        cls,
        folder: Path,
        compressions: Iterable[CellCompression],
        settings: Mapping[str, Any],
        block_size: int,
        bytes_per_element: int,
    ) -> "MemoryPlans":
        """Plans for the checkpoint in `folder`. Raises ScoreFileError also if it is none."""
        identity = identify_checkpoint(folder)
        return cls(identity, compressions, settings, block_size, bytes_per_element)

    def warnings(self) -> list[str]:
        """The warnings about the scores of the policies that use scores, without repetition."""
        found = (
            self.scores[one].warning
            for one, parsed in self._settings.items()
            if parsed.uses_scores and one.is_compressed
        )
        return list(dict.fromkeys(text for text in found if text is not None))

    def sources(self) -> dict[str, str]:
        """The source of the head scores, for each policy that uses scores."""
        return {
            one.policy: self.scores[one].source
            for one, parsed in self._settings.items()
            if parsed.uses_scores and one.is_compressed
        }

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token over all layers and KV heads."""
        identity = self.identity
        num_heads = identity.num_layers * identity.num_kv_heads
        return 2 * self._bytes_per_element * identity.head_size * num_heads

    def _for_prompt(self, compression: CellCompression, num_prompt_tokens: int) -> PromptMemory:
        plan = make_plan(
            self.scores[compression].values,
            self._settings[compression],
            num_prompt_tokens,
            self._block_size,
            self.identity.head_size,
            self._bytes_per_element,
        )
        return PromptMemory(plan.kv_bytes_held, plan.kv_bytes_stock, plan.mean_kept_tokens)


def check_saved(url: str, num_bytes: int, token_bytes: int) -> str | None:
    """A warning if the server at `url` did not free exactly `num_bytes` of its prompts, or None.

    token_bytes: see `MemoryPlans.token_bytes`. Raises EvaluationError if there are no metrics.
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
        f"the server freed {saved / 1024:,.0f} KiB of the prompts, but the plan is "
        f"{num_bytes / 1024:,.0f} KiB, so some values of kept KiB are wrong: a prompt is not "
        "compressed if the pool has no room for the prompt and its compressed blocks together"
    )


def scores_digest(scores: HeadScores) -> str:
    """A digest of the values, 16 hex digits."""
    return sha256(scores.values.tobytes()).hexdigest()[:16]

# SPDX-License-Identifier: Apache-2.0
"""A scoring run: from prompts to the mean score of every head."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import numpy as np
import torch

from headkv_vllm.arrays import FloatArray
from headkv_vllm.errors import ScoringError, shown
from headkv_vllm.scoring.attention_scores import Method
from headkv_vllm.scoring.checkpoint import Checkpoint
from headkv_vllm.scoring.journal import Journal, SampleResult
from headkv_vllm.scoring.measuring import Answers, measure
from headkv_vllm.scoring.prompts import PromptTokens, Template
from headkv_vllm.scoring.samples import recall
from headkv_vllm.version import tool_version

ACCEPTED_SHARE = 0.5
"""A sample counts when the model gives more than this share of its answer."""
MIN_SHARE = 0.25
"""The share of the samples that must count. With fewer, scores say little about retrieval."""
FIRST_SAMPLES = 10
"""If none of these counts, the run stops: the other samples would take time for nothing."""
DECIMALS = 6
"""Decimals of the scores in the file. If all scores are below 0.1 there are more: long evidence
makes scores small."""


@dataclass(frozen=True, eq=False)
class ScoreRun:
    """Measures `prompts` on `checkpoint`.

    expected: the text of each prompt's answer. template: the template of the prompts.
    """

    checkpoint: Checkpoint
    method: Method
    answers: Answers
    template: Template
    prompts: tuple[PromptTokens, ...]
    expected: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Everything that the results depend on, in JSON types. The journal is matched by it."""
        model = self.checkpoint.model
        prompts = [[p.ids, p.evidence, p.answer_ids] for p in self.prompts]
        return {
            "tool_version": tool_version(),
            "method": self.method,
            "answers": self.answers,
            "fingerprint": self.checkpoint.identity.fingerprint,
            "weights": self.checkpoint.weights,
            "dtype": str(model.dtype),
            "device": str(model.device),
            "num_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "num_samples": len(self.prompts),
            "prompts": hashlib.sha256(json.dumps([prompts, self.expected]).encode()).hexdigest(),
        }

    def measure_rest(
        self,
        journal: Journal,
        on_result: Callable[[SampleResult], None],
        *,
        allow_few: bool = False,
    ) -> Journal:
        """Measure the samples that `journal` lacks. `on_result` is called after each of them.

        Raises ScoringError when a result cannot be kept, when the model's logits are not finite,
        or, unless `allow_few`, when none of the first FIRST_SAMPLES counts.
        """
        for index in range(len(journal.results), len(self.prompts)):
            if index == FIRST_SAMPLES and not allow_few and not accepted(journal.results):
                raise ScoringError(self._none_counts(journal.results))
            result = self._measure_one(index)
            journal = journal.append(result)
            on_result(result)
        return journal

    def mean_scores(
        self, results: Sequence[SampleResult], *, allow_few: bool = False
    ) -> FloatArray:
        """The mean over the accepted results: [num_layers, num_heads], rounded, see DECIMALS.

        With the method "grad", the query heads of a KV head share its gradient, see
        `share_among_kv_heads`. Raises ScoringError, with the counts, when fewer than MIN_SHARE of
        the samples count (or none, with `allow_few`), or when no head scores above zero.
        """
        right = accepted(results)
        min_accepted = 1 if allow_few else max(1, ceil(len(results) * MIN_SHARE))
        if not right:
            raise ScoringError(self._none_counts(results))
        if len(right) < min_accepted:
            raise ScoringError(
                f"{len(right)} of {len(results)} samples count, and scores from fewer than "
                f"{min_accepted} say little: --allow-few accepts them; {self._advice}"
            )
        scores: FloatArray = np.mean([result.values for result in right], axis=0)
        if self.method == "grad":
            scores = share_among_kv_heads(scores, self.checkpoint.identity.num_kv_heads)
        if not scores.any():
            raise ScoringError(
                f"all scores are 0: in the {len(right)} answers that count, no head attends the "
                "evidence in the way that the method measures"
            )
        return scores.round(DECIMALS - min(0, floor(log10(scores.max())) + 1))

    def _measure_one(self, index: int) -> SampleResult:
        checkpoint, prompt = self.checkpoint, self.prompts[index]
        try:
            measured = measure(
                checkpoint.model, prompt, self.method, self.answers, checkpoint.stop_ids
            )
        except torch.OutOfMemoryError:
            raise ScoringError(
                f"sample {index + 1} of {len(prompt.ids)} tokens does not fit into the memory of "
                f"{checkpoint.model.device}: give shorter texts (--lengths), or another "
                "--dtype"
            ) from None
        said = checkpoint.tokenizer.decode(measured.choices, skip_special_tokens=True)
        share = measured.agreement
        if self.answers == "generated":
            share = recall(self.expected[index], said)
        return SampleResult(index=index, share=share, said=said, scores=measured.scores.tolist())

    def _none_counts(self, results: Sequence[SampleResult]) -> str:
        last = results[-1]
        return (
            f"none of {len(results)} samples counts: sample {last.index + 1} expects "
            f"{shown(self.expected[last.index])}, the model says {shown(last.said)}; {self._advice}"
        )

    @property
    def _advice(self) -> str:
        if self.template.chat:
            return "shorter texts (--lengths) are easier, and --no-chat asks in plain text"
        if self.checkpoint.tokenizer.chat_template:
            return "shorter texts (--lengths) are easier, and --chat asks in the model's own format"
        return "shorter texts (--lengths) are easier"


def accepted(results: Sequence[SampleResult]) -> list[SampleResult]:
    """The results that count: those with a share above ACCEPTED_SHARE."""
    return [result for result in results if result.share > ACCEPTED_SHARE]


def share_among_kv_heads(gradients: FloatArray, num_kv_heads: int) -> FloatArray:
    """Scores of query heads from the gradients of their gates, both [num_layers, num_heads].

    A KV head has one budget, so its gradient is the sum of the gradients of its query heads. Each
    query head gets an equal part of the sum, or 0 if the sum is negative.
    """
    groups = gradients.reshape(len(gradients), num_kv_heads, -1)
    means = np.maximum(groups.mean(axis=2, keepdims=True), 0.0)
    scores: FloatArray = np.broadcast_to(means, groups.shape).reshape(gradients.shape)
    return scores

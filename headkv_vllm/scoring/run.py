# SPDX-License-Identifier: Apache-2.0
"""A whole run: from prompts to the mean score of every head."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headkv_vllm.errors import ScoringError
from headkv_vllm.scoring.checkpoint import Checkpoint
from headkv_vllm.scoring.f1 import f1
from headkv_vllm.scoring.journal import Journal, SampleResult
from headkv_vllm.scoring.measuring import measure
from headkv_vllm.scoring.methods import Method
from headkv_vllm.scoring.prompts import PromptTokens
from headkv_vllm.version import tool_version

ACCEPTED_F1 = 0.5
"""An answer counts when its F1 is above this, as in the HeadKV authors' code."""
LEAST_SHARE = 0.25
"""Share of the samples that must count. With fewer, the scores say little about retrieval."""
DECIMALS = 6
"""Of the scores in the file, and more where all of them are small: long evidence makes them so."""


@dataclass(frozen=True, eq=False)
class ScoreRun:
    """What is measured: `prompts` on `checkpoint`; `answers` are the texts that they should get."""

    checkpoint: Checkpoint
    method: Method
    prompts: tuple[PromptTokens, ...]
    answers: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """All that the results depend on, in JSON types; the journal is matched by it."""
        model = self.checkpoint.model
        prompts = [[p.ids, p.evidence, p.answer_ids] for p in self.prompts]
        return {
            "tool_version": tool_version(),
            "method": self.method,
            "fingerprint": self.checkpoint.identity.fingerprint,
            "weights": self.checkpoint.weights,
            "dtype": str(model.dtype),
            "device": str(model.device),
            "num_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "num_samples": len(self.prompts),
            "prompts": hashlib.sha256(json.dumps([prompts, self.answers]).encode()).hexdigest(),
        }

    def measure_rest(self, journal: Journal, on_result: Callable[[SampleResult], None]) -> Journal:
        """Measure the samples that `journal` lacks; `on_result` is called after each of them.

        Raises ScoringError when a result cannot be kept, or the model yields no numbers.
        """
        for index in range(len(journal.results), len(self.prompts)):
            result = self._measure_one(index)
            journal = journal.append(result)
            on_result(result)
        return journal

    def _measure_one(self, index: int) -> SampleResult:
        checkpoint, prompt = self.checkpoint, self.prompts[index]
        try:
            measured = measure(checkpoint.model, prompt, self.method, checkpoint.stop_ids)
        except torch.OutOfMemoryError:
            raise ScoringError(
                f"sample {index + 1} of {len(prompt.ids)} tokens does not fit into the memory of "
                f"{checkpoint.model.device}: give shorter texts (--lengths), or another "
                "--dtype"
            ) from None
        said = checkpoint.tokenizer.decode(measured.generated, skip_special_tokens=True)
        return SampleResult(
            index=index, f1=f1(self.answers[index], said), scores=measured.scores.tolist()
        )


def accepted(results: Sequence[SampleResult]) -> list[SampleResult]:
    """The results whose answer is right: F1 above ACCEPTED_F1."""
    return [result for result in results if result.f1 > ACCEPTED_F1]


def mean_scores(
    results: Sequence[SampleResult], *, allow_few: bool = False
) -> npt.NDArray[np.float64]:
    """The mean over the accepted results: [num_layers, num_heads], rounded, see DECIMALS.

    Raises ScoringError, with the counts, when fewer than LEAST_SHARE of the answers are right (or
    none, with `allow_few`), or when no head scores above zero.
    """
    right = accepted(results)
    wanted = 1 if allow_few else max(1, int(np.ceil(len(results) * LEAST_SHARE)))
    if len(right) < wanted:
        raise ScoringError(_too_few(len(right), len(results), wanted))
    scores: npt.NDArray[np.float64] = np.mean([r.values for r in right], axis=0)
    if not scores.any():
        raise ScoringError(
            f"all scores are 0: in {len(right)} right answers no head attends the evidence as the "
            "method asks"
        )
    return scores.round(DECIMALS - min(0, floor(log10(scores.max())) + 1))


def _too_few(right: int, total: int, wanted: int) -> str:
    hint = "--allow-few takes what there is; " if right else ""
    return (
        f"the model answered {right} of {total} samples (F1 above {ACCEPTED_F1}), and scores from "
        f"fewer than {wanted} say little: {hint}--chat asks an instruction-tuned model in its own "
        "format, and shorter texts (--lengths) are easier"
    )

# SPDX-License-Identifier: Apache-2.0
"""The tasks that the needle model was trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.needle.tasks import TASKS, NeedleSample, NeedleTaskName, generate_samples
from headkv_vllm.needle.vocabulary import ASK

SPARE_TOKENS: Final = 4
"""Tokens after the expected answer, so that the metric sees when an answer does not stop."""


@dataclass(frozen=True)
class NeedleTask:
    """`needle/<kind>`. A sample may have several questions; its score is the share answered."""

    kind: NeedleTaskName
    metric: str = "needle"

    @property
    def name(self) -> str:
        """`needle/single` and so on."""
        return f"needle/{self.kind}"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`. Prompts have exactly `length` tokens."""
        drawn = list(generate_samples(self.kind, length, n, seed))
        if drawn and len(tokenizer.encode(drawn[0].prompt)) != length:
            raise SettingsError(
                f"task is {self.name!r}, which is for the needle model's tokenizer only"
            )
        return (self._sample(f"{length}-{seed}-{i}", d) for i, d in enumerate(drawn))

    def _sample(self, name: str, drawn: NeedleSample) -> Sample:
        context, ask, question = drawn.prompt.rpartition(f" {ASK} ")
        return Sample(
            id=name,
            task=self.name,
            context=context,
            question=ask + question,
            answers=(drawn.answer,),
            max_new_tokens=len(drawn.answer.split()) + SPARE_TOKENS,
            length=drawn.num_tokens,
            depth=_depth(drawn),
        )


def _depth(drawn: NeedleSample) -> float | None:
    """The start of the needle as a part of the prompt, 0 to 1; None if there are several."""
    if len(drawn.spans) != 1:
        return None
    return drawn.spans[0][0] / drawn.num_tokens


NEEDLE_TASKS: Final = tuple(NeedleTask(kind) for kind in TASKS)

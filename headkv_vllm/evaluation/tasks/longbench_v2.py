# SPDX-License-Identifier: Apache-2.0
"""LongBench v2 (arXiv 2412.15204): long texts, and questions with four choices."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, Field

from headkv_vllm.errors import SamplesError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.files import draw, find_file, read_rows
from headkv_vllm.evaluation.tasks.fitting import check_numbers, cut_middle

FILES: Final = ("data.json", "data.jsonl", "longbench_v2.json", "longbench_v2.jsonl")
LETTERS: Final = ("A", "B", "C", "D")
MAX_NEW_TOKENS: Final = 128


class LongBenchV2Row(BaseModel):
    """A question of the published file. Other fields are ignored."""

    id: str = Field(alias="_id")
    context: str
    question: str
    choice_a: str = Field(alias="choice_A")
    choice_b: str = Field(alias="choice_B")
    choice_c: str = Field(alias="choice_C")
    choice_d: str = Field(alias="choice_D")
    answer: Literal["A", "B", "C", "D"]

    @property
    def choices(self) -> tuple[str, ...]:
        """From A to D."""
        return self.choice_a, self.choice_b, self.choice_c, self.choice_d


@dataclass(frozen=True)
class LongBenchV2Task:
    """`longbench_v2/all`: the whole benchmark."""

    name: str = "longbench_v2/all"
    metric: str = "choice_letter"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`."""
        check_numbers(n, length, seed)
        rows = draw(read_rows(find_file(self.name, data, FILES), LongBenchV2Row), n, seed)
        return (self._sample(row, length, tokenizer) for row in rows)

    def _sample(self, row: LongBenchV2Row, length: int, tokenizer: Tokenizer) -> Sample:
        question = _question(row)
        context = f"Read the text; a question about it follows.\n\n{row.context.strip()}"
        cut = cut_middle(context, question, length, tokenizer)
        if cut is None:
            raise SamplesError(f"{self.name}: question {row.id} alone is over {length} tokens")
        return Sample(
            id=row.id,
            task=self.name,
            context=cut,
            question=question,
            answers=(row.answer,),
            max_new_tokens=MAX_NEW_TOKENS,
            length=length,
            choices=LETTERS,
        )


def _question(row: LongBenchV2Row) -> str:
    choices = "\n".join(
        f"({letter}) {choice.strip()}" for letter, choice in zip(LETTERS, row.choices, strict=True)
    )
    return (
        f"\n\nQuestion: {row.question.strip()}\n{choices}\n\nReply with one sentence of this form:"
        ' "The correct answer is (X)", where X is the letter of your choice.\nReply:'
    )


LONGBENCH_V2_TASKS: Final = (LongBenchV2Task(),)

# SPDX-License-Identifier: Apache-2.0
"""LooGLE (arXiv 2311.04939): questions about long documents, and their summaries.

The authors report several metrics. Here token F1 scores questions and ROUGE-L scores summaries.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, Field

from headkv_vllm.errors import SamplesError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.files import draw, find_file, read_rows
from headkv_vllm.evaluation.tasks.fitting import check_numbers, cut_middle


class LooGLEQuestion(BaseModel):
    """A question and its answer."""

    q: str = Field(alias="Q")
    a: str = Field(alias="A")


def _pairs(value: Any) -> Any:
    """The list in a published file, which has it as Python or JSON text, or as "none"."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "none":
        return []
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError):
            continue
    return value


class LooGLERow(BaseModel):
    """A document with its questions, or with its summary in `output`."""

    input: str
    title: str = ""
    qa_pairs: Annotated[tuple[LooGLEQuestion, ...], BeforeValidator(_pairs)] = ()
    output: str = ""


@dataclass(frozen=True)
class LooGLETask:
    """`loogle/<kind>`. Each question is a sample, with the whole document as its context."""

    kind: str
    metric: str
    max_new_tokens: int

    @property
    def name(self) -> str:
        """`loogle/shortdep_qa` and so on."""
        return f"loogle/{self.kind}"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`."""
        check_numbers(n, length, seed)
        path = find_file(self.name, data, [f"{self.kind}.jsonl"])
        asked = [
            (f"{i}-{j}", row.input, question, answer)
            for i, row in enumerate(read_rows(path, LooGLERow))
            for j, (question, answer) in enumerate(self._questions(row))
        ]
        if not asked:
            raise SamplesError(f"{path} has no question with an answer")
        return (self._sample(*row, length, tokenizer) for row in draw(asked, n, seed))

    def _questions(self, row: LooGLERow) -> list[tuple[str, str]]:
        if self.kind == "longdep_summarization":
            return [("\n\nWrite a summary of the text.\nSummary:", row.output)]
        form = "\n\nAnswer the question from the text, briefly.\nQuestion: {}\nAnswer:"
        return [(form.format(pair.q), pair.a) for pair in row.qa_pairs]

    def _sample(
        self,
        name: str,
        document: str,
        question: str,
        answer: str,
        length: int,
        tokenizer: Tokenizer,
    ) -> Sample:
        context = cut_middle(f"Read the text.\n\n{document}", question, length, tokenizer)
        if context is None:
            raise SamplesError(f"{self.name}: question {name} alone is over {length} tokens")
        return Sample(
            id=name,
            task=self.name,
            context=context,
            question=question,
            answers=(answer,),
            max_new_tokens=self.max_new_tokens,
            length=length,
        )


LOOGLE_TASKS: Final = (
    LooGLETask("shortdep_qa", "qa_f1", 300),
    LooGLETask("longdep_qa", "qa_f1", 500),
    LooGLETask("longdep_summarization", "rouge", 500),
)

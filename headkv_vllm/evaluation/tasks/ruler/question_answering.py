# SPDX-License-Identifier: Apache-2.0
"""Questions about paragraphs among others: SQuAD (qa_1) and HotpotQA (qa_2), from their files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, Field

from headkv_vllm.errors import SamplesError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.files import draw, find_file, read_document, read_rows
from headkv_vllm.evaluation.tasks.fitting import check_numbers
from headkv_vllm.evaluation.tasks.ruler.filler import Lines, spread
from headkv_vllm.evaluation.tasks.ruler.task import SampleSizer, UnsizedSample


@dataclass(frozen=True)
class DocumentQuestion:
    """A question, its accepted answers, and its paragraphs."""

    id: str
    text: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


class _SquadAnswer(BaseModel):
    text: str


class _SquadQuestion(BaseModel):
    id: str
    question: str
    answers: tuple[_SquadAnswer, ...]


class _SquadParagraph(BaseModel):
    context: str
    qas: tuple[_SquadQuestion, ...]


class _SquadArticle(BaseModel):
    paragraphs: tuple[_SquadParagraph, ...]


class _Squad(BaseModel):
    data: tuple[_SquadArticle, ...]


class _HotpotQuestion(BaseModel):
    id: str = Field(alias="_id")
    question: str
    answer: str
    context: tuple[tuple[str, tuple[str, ...]], ...]


def read_squad(path: Path) -> list[DocumentQuestion]:
    """The questions of SQuAD (1.1 or 2.0) that have an answer. Raises SamplesError."""
    return [
        DocumentQuestion(
            id=asked.id,
            text=asked.question,
            answers=tuple(dict.fromkeys(answer.text for answer in asked.answers)),
            documents=(paragraph.context,),
        )
        for article in read_document(path, _Squad).data
        for paragraph in article.paragraphs
        for asked in paragraph.qas
        if asked.answers
    ]


def read_hotpotqa(path: Path) -> list[DocumentQuestion]:
    """The questions of HotpotQA, each with all its published paragraphs.

    Raises SamplesError when the file cannot be read or is not as published.
    """
    return [
        DocumentQuestion(
            id=asked.id,
            text=asked.question,
            answers=(asked.answer,),
            documents=tuple(f"{title}\n{''.join(text)}" for title, text in asked.context),
        )
        for asked in read_rows(path, _HotpotQuestion)
    ]


MAX_NEW_TOKENS: Final = 32
_HEAD: Final = (
    "Answer the question at the end from the documents below, with the answer only and no other"
    " words."
)
_SOURCES: Final[dict[str, tuple[tuple[str, ...], Callable[[Path], list[DocumentQuestion]]]]] = {
    "qa_1": (("squad.json", "dev-v2.0.json"), read_squad),
    "qa_2": (("hotpotqa.json", "hotpot_dev_distractor_v1.json"), read_hotpotqa),
}


@dataclass(frozen=True)
class RulerReadingTask:
    """`ruler/qa_1` or `ruler/qa_2`."""

    kind: str
    metric: str = "string_match_part"

    @property
    def name(self) -> str:
        """`ruler/qa_1` and so on."""
        return f"ruler/{self.kind}"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`. Raises SettingsError when a question's own paragraphs do not fit."""
        check_numbers(n, length, seed)
        files, read = _SOURCES[self.kind]
        path = find_file(self.name, data, files)
        questions = read(path)
        if not questions:
            raise SamplesError(f"{path} has no question with an answer")
        documents = tuple(dict.fromkeys(text for q in questions for text in q.documents))
        sizer = SampleSizer(self.name, MAX_NEW_TOKENS, length, tokenizer)
        drawn = draw(questions, n, seed)
        unsized_samples = ((_unsized(question, documents, seed), question.id) for question in drawn)
        return (sizer.fit(unsized, name) for unsized, name in unsized_samples)


def _unsized(question: DocumentQuestion, documents: tuple[str, ...], seed: int) -> UnsizedSample:
    """The question's own documents among others. Seed and question decide the order."""
    rng = np.random.default_rng([seed, *question.id.encode()])
    own = set(question.documents)
    order = rng.permutation(len(documents)).tolist()
    others = [documents[i] for i in order if documents[i] not in own]
    depths = rng.uniform(size=len(question.documents)).tolist()
    filler = Lines(iter(others))

    def context(size: int) -> str:
        texts = spread(filler(size), question.documents, depths)
        numbered = (f"Document {i}:\n{text}" for i, text in enumerate(texts, 1))
        return "\n\n".join((_HEAD, *numbered))

    return UnsizedSample(
        context=context,
        question=f"\n\nQuestion: {question.text}",
        answer_prefix="\nAnswer:",
        answers=question.answers,
        depth=depths[0] if len(depths) == 1 else None,
        min_size=0,
        max_size=len(others),
    )

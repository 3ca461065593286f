# SPDX-License-Identifier: Apache-2.0
"""Questions with their paragraphs, from the published files of SQuAD and HotpotQA."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from headkv_vllm.evaluation.tasks.files import read_document, read_rows


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and the paragraphs it comes with."""

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


def read_squad(path: Path) -> list[Question]:
    """The questions of SQuAD (1.1 or 2.0) that can be answered. Raises SamplesError."""
    return [
        Question(
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


def read_hotpotqa(path: Path) -> list[Question]:
    """The questions of HotpotQA, each with all paragraphs it is published with.

    Raises:
        SamplesError: the file cannot be read, or is not as published.
    """
    return [
        Question(
            id=asked.id,
            text=asked.question,
            answers=(asked.answer,),
            documents=tuple(f"{title}\n{''.join(text)}" for title, text in asked.context),
        )
        for asked in read_rows(path, _HotpotQuestion)
    ]

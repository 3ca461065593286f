# SPDX-License-Identifier: Apache-2.0
"""A page about an invented town, and the questions that it answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import numpy as np

from headkv_vllm.evaluation.tasks.town.names import Values

IT: Final = "{it}"
VALUE: Final = "{value}"


@dataclass(frozen=True)
class Relation:
    """A fact about a thing, as `facts.txt` describes it.

    value: the kind of its answer, see `names.Values`. statements: sentences with the fact, in which
    `{it}` is the thing and `{value}` the answer. question: asks for the fact, with `{it}`.
    """

    value: str
    statements: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class ThingKind:
    """A kind of thing.

    title: its full name, with `{name}` for a proper name. noun: its short name, used after the
    first mention. opening: its first sentence, with `{it}`.
    """

    title: str
    noun: str
    opening: str
    relations: tuple[Relation, ...]


def _kind(block: str) -> ThingKind:
    (title, noun, opening), *lines = (_parts(line) for line in block.splitlines())
    relations = (Relation(value, tuple(said), question) for value, *said, question in lines)
    return ThingKind(title, noun, opening, tuple(relations))


def _parts(line: str) -> list[str]:
    return [part.strip() for part in line.split("|")]


_comment, *_kinds, _remarks = (
    (files("headkv_vllm.evaluation.tasks.town") / "facts.txt").read_text().split("\n\n")
)
KINDS: Final = tuple(map(_kind, _kinds))
REMARKS: Final = tuple(line.strip() for line in _remarks.splitlines()[1:])
"""Sentences without facts."""


_BEFORE_VOWEL: Final = re.compile(r"\b([Aa]) (?=[aeiou])")
FULL_NAME_SHARE: Final = 0.8
"""The share of a paragraph's facts that use the full name of their thing."""
TWO_FACTS_SHARE: Final = 0.3
"""The share of paragraphs with two facts. Other paragraphs have one."""
SENTENCES: Final = 5
"""The number of facts and remarks in a paragraph, after its opening."""


@dataclass(frozen=True)
class TownQuestion:
    """A question about a sentence, and its accepted answers."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TownSentence:
    """One sentence of a page. is_first: it begins a paragraph."""

    text: str
    is_first: bool = False
    question: TownQuestion | None = None


def draw_page(rng: np.random.Generator, num_paragraphs: int) -> list[TownSentence]:
    """The sentences of a page. A longer page of the same `rng` begins with the same sentences."""
    values = Values(rng)
    town = values.draw("name")
    sentences = [
        TownSentence(
            f"{town} is a small town in the hills, and this page is about it.", is_first=True
        )
    ]
    kinds: list[int] = []
    for _ in range(num_paragraphs):
        kinds = kinds or rng.permutation(len(KINDS)).tolist()
        sentences += _paragraph(KINDS[kinds.pop()], values, rng)
    return sentences


def page_text(sentences: Sequence[TownSentence]) -> str:
    """The sentences in paragraphs, with an empty line between them."""
    parts = (("\n\n" if s.is_first else " ") + s.text for s in sentences)
    return "".join(parts).strip()


def _paragraph(kind: ThingKind, values: Values, rng: np.random.Generator) -> list[TownSentence]:
    """An opening, and facts and remarks in any order."""
    title = kind.title.format(name=values.draw("name"))
    num_facts = 1 + int(rng.random() < TWO_FACTS_SHARE)
    said = []
    for index in rng.permutation(len(kind.relations))[:num_facts].tolist():
        relation = kind.relations[index]
        value = values.draw(relation.value)
        statement = relation.statements[int(rng.integers(len(relation.statements)))]
        name = title if rng.random() < FULL_NAME_SHARE else kind.noun
        question = TownQuestion(
            _fill(relation.question, title, value), _answers(relation.value, value)
        )
        said.append(TownSentence(_fill(statement, name, value), question=question))
    remarks = rng.choice(len(REMARKS), SENTENCES - num_facts, replace=False).tolist()
    said += [TownSentence(REMARKS[index]) for index in remarks]
    order = rng.permutation(len(said)).tolist()
    opening = TownSentence(_fill(kind.opening, title, ""), is_first=True)
    return [opening, *(said[index] for index in order)]


def _fill(text: str, name: str, value: str) -> str:
    filled = text.replace(IT, name).replace(VALUE, value)
    filled = _BEFORE_VOWEL.sub(r"\1n ", filled)
    return filled[0].upper() + filled[1:]


def _answers(kind: str, value: str) -> tuple[str, ...]:
    """The accepted answers: the last name is enough, and a price needs no currency."""
    if kind == "person":
        return (value, value.split()[-1])
    return (value, value.split()[0]) if kind == "price" else (value,)

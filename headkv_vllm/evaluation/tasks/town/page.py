# SPDX-License-Identifier: Apache-2.0
"""A page about an invented town, and what can be asked about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headkv_vllm.evaluation.tasks.town.facts import IT, KINDS, REMARKS, VALUE, Kind
from headkv_vllm.evaluation.tasks.town.names import Values

_BEFORE_VOWEL: Final = re.compile(r"\b([Aa]) (?=[aeiou])")
FULL_NAME_SHARE: Final = 0.8
"""Of the sentences after a paragraph's first, those that name their thing in full."""
TWO_FACTS_SHARE: Final = 0.3
"""Of the paragraphs, those with two facts; others have one."""
SENTENCES: Final = 5
"""Of a paragraph, after its first: facts, and remarks that make it prose."""


@dataclass(frozen=True)
class Question:
    """What can be asked of a sentence, and the answers that count: all of it, or its last word."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """One sentence of a page. is_first: it begins a paragraph."""

    text: str
    is_first: bool = False
    question: Question | None = None


def draw_page(rng: np.random.Generator, num_paragraphs: int) -> list[Sentence]:
    """A page's sentences. A longer one of the same `rng` begins with the same."""
    values = Values(rng)
    town = values.draw("name")
    sentences = [
        Sentence(f"{town} is a small town in the hills, and this page is about it.", is_first=True)
    ]
    kinds: list[int] = []
    for _ in range(num_paragraphs):
        kinds = kinds or rng.permutation(len(KINDS)).tolist()
        sentences += _paragraph(KINDS[kinds.pop()], values, rng)
    return sentences


def page_text(sentences: Sequence[Sentence]) -> str:
    """The sentences in paragraphs, with an empty line between them."""
    parts = (("\n\n" if s.is_first else " ") + s.text for s in sentences)
    return "".join(parts).strip()


def _paragraph(kind: Kind, values: Values, rng: np.random.Generator) -> list[Sentence]:
    """An opening, and facts and remarks in any order."""
    title = kind.title.format(name=values.draw("name"))
    num_facts = 1 + int(rng.random() < TWO_FACTS_SHARE)
    said = []
    for index in rng.permutation(len(kind.relations))[:num_facts].tolist():
        relation = kind.relations[index]
        value = values.draw(relation.value)
        statement = relation.statements[int(rng.integers(len(relation.statements)))]
        name = title if rng.random() < FULL_NAME_SHARE else kind.noun
        question = Question(_fill(relation.question, title, value), _answers(relation.value, value))
        said.append(Sentence(_fill(statement, name, value), question=question))
    remarks = rng.choice(len(REMARKS), SENTENCES - num_facts, replace=False).tolist()
    said += [Sentence(REMARKS[index]) for index in remarks]
    order = rng.permutation(len(said)).tolist()
    opening = Sentence(_fill(kind.opening, title, ""), is_first=True)
    return [opening, *(said[index] for index in order)]


def _fill(text: str, name: str, value: str) -> str:
    filled = text.replace(IT, name).replace(VALUE, value)
    filled = _BEFORE_VOWEL.sub(r"\1n ", filled)
    return filled[0].upper() + filled[1:]


def _answers(kind: str, value: str) -> tuple[str, ...]:
    """A person may be called by the last name alone, and a price be given without its currency."""
    if kind == "person":
        return (value, value.split()[-1])
    return (value, value.split()[0]) if kind == "price" else (value,)

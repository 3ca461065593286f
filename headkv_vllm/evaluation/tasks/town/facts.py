# SPDX-License-Identifier: Apache-2.0
"""What there is in a town, what is said of it, and what is asked about it: `facts.txt`, read."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Final

IT: Final = "{it}"
VALUE: Final = "{value}"


@dataclass(frozen=True)
class Relation:
    """Something that is true of a thing.

    value: what kind of answer it has, see `names.Values`. statements: sentences that say it, with
    `{it}` for the thing and `{value}` for the answer. question: asks for it, with `{it}`.
    """

    value: str
    statements: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class Kind:
    """A kind of thing.

    title: its full name, in which `{name}` stands for a name of its own. noun: what it is called
    from the second time on. opening: its first sentence, with `{it}`.
    """

    title: str
    noun: str
    opening: str
    relations: tuple[Relation, ...]


def _kind(block: str) -> Kind:
    (title, noun, opening), *lines = (_parts(line) for line in block.splitlines())
    relations = (Relation(value, tuple(said), question) for value, *said, question in lines)
    return Kind(title, noun, opening, tuple(relations))


def _parts(line: str) -> list[str]:
    return [part.strip() for part in line.split("|")]


_comment, *_kinds, _remarks = (
    (files("headkv_vllm.evaluation.tasks.town") / "facts.txt").read_text().split("\n\n")
)
KINDS: Final = tuple(map(_kind, _kinds))
REMARKS: Final = tuple(line.strip() for line in _remarks.splitlines()[1:])
"""Sentences that say nothing that is asked for."""

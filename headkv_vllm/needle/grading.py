# SPDX-License-Identifier: Apache-2.0
"""Grades an answer of the needle model by words and by questions."""

from dataclasses import dataclass

from headkv_vllm.needle.vocabulary import END, EOS, VALUES

_VALUES = frozenset(VALUES)


@dataclass(frozen=True)
class Grade:
    """The grade of an answer: value words in the right place, and completely right questions."""

    values_right: int
    values: int
    questions_right: int
    questions: int


def grade(answer: str, generated: str) -> Grade:
    """Compare generated text with the expected answer.

    A question is right when its complete entry, from the key to `;`, has the same place among the
    generated entries. Text after the last entry or after EOS is ignored. A value is right when it
    has the same place in its entry.
    """
    expected, said = entries(answer), entries(generated)
    said += [()] * (len(expected) - len(said))
    places = [
        (word, there[i] if i < len(there) else None)
        for entry, there in zip(expected, said, strict=False)
        for i, word in enumerate(entry)
        if word in _VALUES
    ]
    return Grade(
        values_right=sum(word == there for word, there in places),
        values=len(places),
        questions_right=sum(e == s for e, s in zip(expected, said, strict=False)),
        questions=len(expected),
    )


def entries(text: str) -> list[tuple[str, ...]]:
    """The entries of an answer, each with its `;` at the end. The last one may lack it."""
    found: list[tuple[str, ...]] = []
    words: list[str] = []
    for word in text.split():
        if word == EOS:
            break
        words.append(word)
        if word == END:
            found.append(tuple(words))
            words = []
    return [*found, tuple(words)] if words else found

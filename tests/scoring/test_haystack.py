# SPDX-License-Identifier: Apache-2.0
"""Generated prose and the user's text."""

import re
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.errors import SamplesError
from headkv_vllm.scoring.haystack import (
    GRAMMAR,
    MAX_WORDS,
    GeneratedHaystack,
    TextHaystack,
    split_sentences,
)
from headkv_vllm.scoring.needles import DEEDS, PEOPLE, SPOTS, TOWNS

FUNCTION_WORDS = set(
    "a along at behind beside between by end for from in near next of old on outside the to top "
    "under with".split()
)


def prose(seed: int, count: int) -> list[str]:
    return list(islice(GeneratedHaystack().sentences(np.random.default_rng(seed)), count))


def test_a_seed_gives_the_same_prose_and_another_one_other_prose() -> None:
    assert prose(1, 50) == prose(1, 50)
    assert not set(prose(1, 50)) & set(prose(2, 50))


def test_sentences_are_whole() -> None:
    for sentence in prose(3, 3000):
        assert re.fullmatch(r"[A-Z][A-Za-z ,;-]+\.", sentence), sentence
        assert "  " not in sentence and not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", sentence)


def test_a_hundred_thousand_words_repeat_no_two_sentences_in_a_row() -> None:
    sentences = prose(4, 6000)
    assert sum(len(sentence.split()) for sentence in sentences) > 100_000
    assert len(set(sentences)) > 0.99 * len(sentences)
    pairs = list(pairwise(sentences))
    assert len(set(pairs)) == len(pairs)


def test_every_line_of_the_grammar_is_reached() -> None:
    named = {name for lines in GRAMMAR.values() for line in lines for name in _names(line)}
    assert named | {"sentence"} == set(GRAMMAR)
    assert all(line for lines in GRAMMAR.values() for line in lines)
    assert all(len(set(lines)) == len(lines) for lines in GRAMMAR.values())


def test_prose_shares_no_word_with_needles() -> None:
    lines = [re.sub(r"\{\w+\}", "", line) for lines in GRAMMAR.values() for line in lines]
    words = _words(" ".join(lines))
    assert words & _words(" ".join(DEEDS + SPOTS)) <= FUNCTION_WORDS
    assert not words & _words(" ".join(PEOPLE + TOWNS))
    assert not words & {"best", "notice", "flag", "guests", "today", "believe", "believes"}


def _names(line: str) -> list[str]:
    return [name.lower() for name in re.findall(r"\{(\w+)\}", line)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


TEXT = 'One is here.  Two\nis "here!" Three is (here.) Is four?\n\nA heading\n\nFive\u3002Six'
SENTENCES = (
    "One is here.",
    'Two is "here!"',
    "Three is (here.)",
    "Is four?",
    "A heading",
    "Five\u3002",
    "Six",
)


def test_a_text_is_split_into_sentences() -> None:
    assert split_sentences(TEXT) == SENTENCES


@given(text=st.text('ab .!?\n")', max_size=200))
def test_no_word_is_lost_when_a_text_is_split(text: str) -> None:
    sentences = split_sentences(text)
    assert " ".join(sentences).split() == text.split()
    assert all(sentence and sentence == " ".join(sentence.split()) for sentence in sentences)


def test_a_text_without_sentences_comes_in_pieces() -> None:
    lengths = [len(piece.split()) for piece in split_sentences("word " * (2 * MAX_WORDS + 5))]
    assert lengths == [MAX_WORDS, MAX_WORDS, 5]


def test_a_text_is_read_once_round_from_a_place_that_the_seed_chooses(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(TEXT, encoding="utf-8-sig")
    haystack = TextHaystack(tmp_path / "x")
    rounds = [tuple(haystack.sentences(np.random.default_rng(seed))) for seed in range(40)]
    starts = [SENTENCES.index(sentences[0]) for sentences in rounds]
    assert rounds == [SENTENCES[start:] + SENTENCES[:start] for start in starts]
    assert set(starts) == set(range(len(SENTENCES)))


def test_a_folder_is_its_text_files_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"In {name}")
    found = set(TextHaystack(tmp_path).sentences(np.random.default_rng(0)))
    assert found == {"In a.txt", "In b.txt"}


@pytest.mark.parametrize(
    ("contents", "reason"),
    [(None, "cannot be read: No such file"), (b" \n", "has no text"), (b"\xff", "is not UTF-8")],
)
def test_a_haystack_that_cannot_be_used_is_named(
    tmp_path: Path, contents: bytes | None, reason: str
) -> None:
    path = tmp_path / "hay.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(SamplesError, match=reason) as caught:
        TextHaystack(path)
    assert str(path) in str(caught.value)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match=r"has no text, expected \.txt"):
        TextHaystack(tmp_path)

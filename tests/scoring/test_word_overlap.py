# SPDX-License-Identifier: Apache-2.0
"""Recall and F1 of words against values worked out by hand, and their properties."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.evaluation.metrics.overlap import words_f1
from headkv_vllm.scoring.samples import english_words, recall

BY_HAND = [
    ("feed the swans", "Feed swans.", 1.0, 1.0),
    ("feed the swans", "feed the geese", 1 / 2, 1 / 2),  # one of two words, both ways
    ("feed the swans at dawn", "feed", 1 / 4, 2 * 1 * (1 / 4) / (1 + 1 / 4)),
    ("a b b c", "b b b d", 2 / 3, 2 / 3.5),  # "a" is an article: 2 of 3 words, 2 of 4
    ("feed the swans", "look at boats", 0.0, 0.0),
    ("don't stop", "dont, stop!", 1.0, 1.0),
    ("the theatre", "theatre", 1.0, 1.0),  # no article inside a word
    ("swans", "The guests like to feed swans.", 1.0, 2 / 6),
    ("swans", "", 0.0, 0.0),
    ("The", "an", 1.0, 0.0),
    ("The", "swans", 0.0, 0.0),
]
WORDS = st.lists(st.sampled_from("ant bee cat dog elk".split()), min_size=1).map(" ".join)


@pytest.mark.parametrize(("answer", "generated", "recalled", "f1"), BY_HAND)
def test_values_worked_out_by_hand(answer: str, generated: str, recalled: float, f1: float) -> None:
    assert recall(answer, generated) == pytest.approx(recalled)
    assert words_f1(english_words(answer), english_words(generated)) == pytest.approx(f1)


@given(answer=st.text(), generated=st.text())
def test_values_are_within_bounds(answer: str, generated: str) -> None:
    assert 0 <= recall(answer, generated) <= 1
    assert recall(answer, answer) == 1


@given(text=WORDS, mark=st.sampled_from(string.punctuation), data=st.data())
def test_order_case_and_punctuation_do_not_count(text: str, mark: str, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(text.split()))
    assert recall(text, f"{mark} ".join(shuffled).upper() + mark) == 1


@given(text=WORDS, extra=st.integers(1, 9))
def test_needless_words_cost_precision_but_no_recall(text: str, extra: int) -> None:
    count = len(text.split())
    said = text + " zebra" * extra
    assert words_f1(text.split(), said.split()) == pytest.approx(2 * count / (2 * count + extra))
    assert recall(text, said) == 1

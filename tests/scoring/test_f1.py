# SPDX-License-Identifier: Apache-2.0
"""Token F1 against values worked out by hand, and its properties."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.scoring.f1 import f1

BY_HAND = [
    ("feed the swans", "Feed swans.", 1.0),
    ("feed the swans", "feed the geese", 1 / 2),  # one of two words, both ways
    ("feed the swans at dawn", "feed", 2 * 1 * (1 / 4) / (1 + 1 / 4)),
    ("a b b c", "b b b d", 2 / 3.5),  # "a" is an article: 2 of 3 words, 2 of 4
    ("feed the swans", "look at boats", 0.0),
    ("don't stop", "dont, stop!", 1.0),
    ("the theatre", "theatre", 1.0),  # no article inside a word
    ("swans", "", 0.0),
    ("The", "an", 1.0),
]
WORDS = st.lists(st.sampled_from("ant bee cat dog elk".split()), min_size=1).map(" ".join)


@pytest.mark.parametrize(("answer", "generated", "value"), BY_HAND)
def test_values_worked_out_by_hand(answer: str, generated: str, value: float) -> None:
    assert f1(answer, generated) == pytest.approx(value)


@given(answer=st.text(), generated=st.text())
def test_is_symmetric_and_within_bounds(answer: str, generated: str) -> None:
    assert 0 <= f1(answer, generated) <= 1
    assert f1(answer, generated) == f1(generated, answer)
    assert f1(answer, answer) == 1


@given(text=WORDS, mark=st.sampled_from(string.punctuation), data=st.data())
def test_order_case_and_punctuation_do_not_count(text: str, mark: str, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(text.split()))
    assert f1(text, f"{mark} ".join(shuffled).upper() + mark) == 1


@given(text=WORDS, extra=st.integers(1, 9))
def test_needless_words_cost_precision(text: str, extra: int) -> None:
    count = len(text.split())
    assert f1(text, text + " zebra" * extra) == pytest.approx(2 * count / (2 * count + extra))

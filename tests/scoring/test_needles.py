# SPDX-License-Identifier: Apache-2.0
"""Needles: the answer stands in the right statement alone, and the facts decide."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.scoring.attention_scores import METHODS, Method
from headkv_vllm.scoring.needles import DEEDS, PATTERNS, SPOTS, Needle, draw_needle
from headkv_vllm.scoring.run import ACCEPTED_SHARE
from headkv_vllm.scoring.samples import recall

SEEDS = st.integers(0, 2**32)


def draw(method: Method, seed: int) -> Needle:
    return draw_needle(method, np.random.default_rng(seed))


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS)
def test_the_answer_stands_in_the_right_statement_alone(method: Method, seed: int) -> None:
    needle = draw(method, seed)
    assert needle.correct.count(needle.answer) == 1
    assert not any(needle.answer in text for text in (needle.question, *needle.others))
    assert all(text.endswith(".") for text in (needle.correct, *needle.others))
    assert needle == draw(method, seed)


def test_every_answer_has_five_to_twelve_words() -> None:
    lengths = {len(f"{deed} {spot}".split()) for deed in DEEDS for spot in SPOTS}
    assert 5 <= min(lengths) and max(lengths) <= 12


@given(seed=SEEDS)
def test_the_wrong_statement_is_not_half_right(seed: int) -> None:
    needle = draw("r2", seed)
    wrong = _deed(needle.others[-1])
    assert recall(needle.answer, wrong) <= ACCEPTED_SHARE
    assert recall(needle.answer, _deed(needle.correct)) == 1


@given(seed=SEEDS)
def test_the_facts_tell_the_right_statement(seed: int) -> None:
    """Reason as a reader would, from the question, the facts and both statements in any order."""
    needle = draw("r2", seed)
    fact, wrong = needle.others
    assert _reason(fact, {needle.correct, wrong}) == needle.correct


def test_the_retrieval_needle_is_one_statement() -> None:
    assert all(draw("r", seed).others == () for seed in range(20))


def test_needles_differ_and_use_every_pattern() -> None:
    needles = [draw("r2", seed) for seed in range(300)]
    assert len({needle.answer for needle in needles}) > 150
    assert len({needle.correct for needle in needles}) > 290
    kinds = {needle.correct.split()[1] for needle in needles}
    assert kinds == {"says", "notice", "a"} and len(PATTERNS) == 3


def _deed(statement: str) -> str:
    return re.split(r" in \w+ is to | guests of \w+ to | going to ", statement)[1]


def _reason(fact: str, statements: set[str]) -> str:
    if trusted := re.search(r"believes (\w+) and never", fact):
        holding = [text for text in statements if text.startswith(trusted[1])]
    elif flag := re.search(r"today is (\w+)\.", fact):
        holding = [text for text in statements if f"When a {flag[1]} flag" in text]
    else:
        years = {re.search(r"notice of (\d+)", text)[1]: text for text in statements}
        rule = re.search(r"the (older|newer) one is in force", fact)[1]
        holding = [years[min(years) if rule == "older" else max(years)]]
    assert len(holding) == 1
    return holding[0]

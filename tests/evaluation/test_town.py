# SPDX-License-Identifier: Apache-2.0
"""Pages on invented towns: what is asked is said once, and lengths are as asked for."""

import re
from collections import Counter

import numpy as np
import pytest

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.evaluation.tasks.town.names import POOLS, Values
from headkv_vllm.evaluation.tasks.town.page import IT, KINDS, REMARKS, VALUE, draw_page, page_text
from headkv_vllm.evaluation.tasks.town.task import QUESTIONS_PER_PAGE, TownTask
from tests.scoring.small_models import small_tokenizer

TOKENIZER = small_tokenizer()
"""A token is a byte here."""
MADE_UP = ("name", "person", "year", "number", "price", "time")


def samples(n: int = 12, length: int = 4000, seed: int = 1) -> list[Sample]:
    return list(TownTask().samples(n, length, seed, TOKENIZER, None))


def test_prompts_are_as_long_as_they_may_be() -> None:
    for sample in samples():
        room = sample.length - len(TOKENIZER.encode(sample.prompt))
        assert 0 <= room <= 200  # a sentence, and a question that is shorter than the longest


def test_the_seed_decides() -> None:
    assert samples() == samples() and samples(7) == samples()[:7]
    assert samples(1, seed=2)[0].context != samples(1)[0].context
    assert len({sample.id for sample in samples()}) == 12


def test_several_questions_are_asked_about_each_page() -> None:
    pages = Counter(sample.context for sample in samples())
    assert sorted(pages.values()) == [2, QUESTIONS_PER_PAGE, QUESTIONS_PER_PAGE]
    assert len({(sample.context, sample.question) for sample in samples()}) == 12


def test_what_is_asked_is_said_in_the_page_where_the_depth_says() -> None:
    metric = METRICS[TownTask().metric]
    for sample in samples():
        assert metric(sample, sample.question) == 0
        assert metric(sample, f"It is {sample.answers[0]}.") == 1
        start = round(sample.depth * len(sample.context))
        assert sample.answers[0] in sample.context[start : start + 160]
        thing = re.search(r"the ([A-Z]\w+ )+", sample.question)
        assert thing and thing[0].strip() in sample.context


def test_a_page_is_prose_with_facts_in_it() -> None:
    page = draw_page(np.random.default_rng(0), 40)
    text = page_text(page)
    assert text.count("\n\n") == 40 and text[:40] == page_text(page[:9])[:40]
    assert not re.search(r"[{}|]|\ba [aeiou]", text)
    assert 40 <= sum(sentence.question is not None for sentence in page) <= 80
    said = [sentence.question.text for sentence in page if sentence.question]
    assert len(set(said)) == len(said)


def test_facts_are_complete() -> None:
    for kind in KINDS:
        assert "{name}" in kind.title and IT in kind.opening and len(kind.relations) == 3
        for relation in kind.relations:
            assert relation.value in {*POOLS, *MADE_UP} and len(relation.statements) == 2
            assert all(IT in text and VALUE in text for text in relation.statements)
            assert IT in relation.question and relation.question.endswith("?")
    assert len(REMARKS) > 20 and all(remark.endswith(".") for remark in REMARKS)


@pytest.mark.parametrize("kind", [*POOLS, *MADE_UP])
def test_a_value_comes_again_only_when_all_did(kind: str) -> None:
    values = Values(np.random.default_rng(0))
    number = len(POOLS.get(kind, range(60)))
    assert len({values.draw(kind) for _ in range(number)}) == number


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"length is 300, too short for the 5 facts of town/qa"):
        samples(length=300)

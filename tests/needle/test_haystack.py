# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.needle.haystack import (
    EntryCounts,
    bury,
    disputed_entry,
    draw_entries,
    needles_of,
    plain_entry,
    pointer_entry,
)
from headkv_vllm.needle.vocabulary import BOS, FILLER, FULL_STOP, NEAR, PLACES


def draw(seed, **counts):
    by_kind = draw_entries(np.random.default_rng(seed), EntryCounts(**counts))
    return [entry for kind in by_kind.values() for entry in kind]


@given(
    seed=st.integers(0, 2**32),
    plain=st.integers(1, 40),
    num_values=st.integers(1, 5),
    disputed=st.integers(0, 7),
    long=st.integers(0, 2),
    extra=st.integers(0, 200),
    data=st.data(),
)
def test_every_needle_stands_where_its_span_says(
    seed, plain, num_values, disputed, long, extra, data
):
    pointers = data.draw(st.integers(0, plain))
    entries = draw(
        seed,
        num_values=num_values,
        plain=plain,
        pointers=pointers,
        disputed=disputed,
        long=long,
        long_values=9,
    )
    needles = needles_of(entries)
    assert len(needles) == plain + long + pointers + 3 * disputed
    length = 1 + sum(map(len, needles)) + extra
    haystack = bury(np.random.default_rng(seed), entries, length)

    assert haystack.words[0] == BOS and len(haystack.words) == length
    assert list(haystack.entries) == [entry.key for entry in entries]
    covered = {0}
    for needle in needles:
        start, end = haystack.spans[needle]
        assert haystack.words[start:end] == needle
        assert covered.isdisjoint(range(start, end))
        covered.update(range(start, end))
    rest = [word for i, word in enumerate(haystack.words) if i not in covered]
    assert set(rest) <= {*FILLER, FULL_STOP} and len(rest) == extra


@given(seed=st.integers(0, 2**32), plain=st.integers(1, 40), disputed=st.integers(0, 7))
def test_keys_places_and_values_are_unique_while_the_words_last(seed, plain, disputed):
    entries = draw(seed, num_values=4, plain=plain, pointers=min(plain, 8), disputed=disputed)
    assert len({entry.key for entry in entries}) == len(entries)
    needles = needles_of(entries)
    values = [word for needle in needles for word in needle if "-" in word]
    assert len(set(values)) == len(values) == 4 * (plain + 2 * disputed)
    stated = [needle[1] for needle in needles if needle[1] in PLACES]
    assert len(set(stated)) == len(stated) == 2 * disputed


def test_an_entry_of_many_values_has_just_those():
    (plain, long) = draw(0, num_values=3, plain=1, long=1, long_values=10)
    assert len(plain.answer) == 3 + 2 and len(long.answer) == 10 + 2


def test_a_pointer_shows_its_target_and_answers_with_the_targets_values():
    held = plain_entry("adam", ("red-1", "red-2"))
    pointer = pointer_entry("eva", held)
    assert pointer.evidence == (("eva", "adam", ";"), ("adam", "red-1", "red-2", ";"))
    assert pointer.answer == ("eva", "adam", "red-1", "red-2", ";")


def test_the_fact_tells_which_statement_holds():
    entry = disputed_entry("adam", ("river", "gate"), (("red-1",), ("blue-2",)))
    assert entry.evidence == (("adam", NEAR, "river", ";"), ("adam", "river", "red-1", ";"))
    assert entry.distractors == (("adam", "gate", "blue-2", ";"),)
    assert entry.answer == entry.evidence[1]


def test_the_wrong_statement_stands_first_about_as_often_as_the_right_one():
    first = 0
    for seed in range(200):
        (entry,) = draw(seed, num_values=2, disputed=1)
        spans = bury(np.random.default_rng(seed), [entry], 60).spans
        first += spans[entry.distractors[0]] < spans[entry.evidence[1]]
    assert 70 <= first <= 130

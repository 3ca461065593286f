# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.needle.haystack import bury, draw_needles
from headkv_vllm.needle.vocabulary import BOS, FILLER, FULL_STOP


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 48),
    num_values=st.integers(1, 5),
    extra=st.integers(0, 200),
    data=st.data(),
)
def test_every_needle_stands_where_its_span_says(seed, count, num_values, extra, data):
    rng = np.random.default_rng(seed)
    needles = draw_needles(rng, count, num_values, data.draw(st.integers(0, count)))
    length = 1 + sum(len(needle.words) for needle in needles) + extra
    haystack = bury(rng, needles, length)

    assert haystack.words[0] == BOS and len(haystack.words) == length
    covered = {0}
    for needle in needles:
        start, end = haystack.spans[needle.key]
        assert haystack.words[start:end] == needle.words
        assert covered.isdisjoint(range(start, end))
        covered.update(range(start, end))
    rest = [word for i, word in enumerate(haystack.words) if i not in covered]
    assert set(rest) <= {*FILLER, FULL_STOP} and len(rest) == extra


@given(seed=st.integers(0, 2**32), count=st.integers(1, 64))
def test_keys_and_values_are_unique_while_the_words_last(seed, count):
    needles = draw_needles(np.random.default_rng(seed), count, 4, min(count, 8))
    keys = [needle.key for needle in needles]
    values = [value for needle in needles if needle.target is None for value in needle.values]
    assert len(set(keys)) == len(keys)
    assert len(set(values)) == len(values) == 4 * count


def test_a_pointer_shows_its_target_and_answers_with_the_targets_values():
    *held, pointer = draw_needles(np.random.default_rng(0), 3, 2, 1)
    assert pointer.target == held[0].key
    assert pointer.words == (pointer.key, held[0].key, ";")
    assert pointer.answer == (pointer.key, *held[0].answer)

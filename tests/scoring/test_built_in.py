# SPDX-License-Identifier: Apache-2.0
"""Built-in samples: lengths, depths, determinism, and what has no room."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from headkv_vllm.errors import SamplesError
from headkv_vllm.scoring.attention_scores import METHODS, Method
from headkv_vllm.scoring.haystack import GeneratedHaystack, TextHaystack
from headkv_vllm.scoring.needles import draw_needle
from headkv_vllm.scoring.samples import ScoreSample
from headkv_vllm.scoring.sources import CountTokens, built_in_samples

PROSE = GeneratedHaystack()


def words(text: str) -> int:
    return len(text.split())


def make(
    lengths: list[int],
    per_length: int,
    *,
    method: Method = "r2",
    seed: int = 0,
    count: CountTokens = words,
) -> list[ScoreSample]:
    return list(built_in_samples(method, count, lengths, per_length, seed, PROSE))


def byte_pairs() -> Tokenizer:
    """A small byte-level BPE, trained on generated prose."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    text = islice(PROSE.sentences(np.random.default_rng(0)), 300)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def crossing() -> Tokenizer:
    """A BPE without word borders, so that tokens reach across sentences."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    sentences = list(islice(PROSE.sentences(np.random.default_rng(0)), 100))
    tokenizer.train_from_iterator([" ".join(sentences)], trainer)
    return tokenizer


def counting(tokenizer: Tokenizer) -> CountTokens:
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


COUNTS: dict[str, Callable[[], CountTokens]] = {
    "words": lambda: words,
    "characters": lambda: len,
    "byte pairs": lambda: counting(byte_pairs()),
    "across sentences": lambda: counting(crossing()),
    # Whole texts count for more, or less, than their sentences.
    "more": lambda: lambda text: words(text) + words(text) ** 2 // 400,
    "less": lambda: lambda text: words(text) - words(text) // 3,
}
LONGEST_SENTENCE = 40  # words


@pytest.mark.parametrize("name", COUNTS)
def test_lengths_are_never_exceeded_and_almost_reached(name: str) -> None:
    count = COUNTS[name]()
    lengths = [1200, 2500] if name == "characters" else [300, 1000]
    samples = make(lengths, 6, count=count)
    room = max(count(s) for s in islice(PROSE.sentences(np.random.default_rng(0)), 2000))
    for index, sample in enumerate(samples):
        taken = count(sample.context) + count(sample.question)
        wanted = lengths[index // 6]
        assert wanted - room * (2 if name == "more" else 1) <= taken <= wanted
    assert len(samples) == 12


@settings(max_examples=20, deadline=None)
@given(length=st.integers(90, 700), seed=st.integers(0, 2**31), method=st.sampled_from([*METHODS]))
def test_the_evidence_is_the_right_statement(length: int, seed: int, method: Method) -> None:
    for index, sample in enumerate(make([length], 3, method=method, seed=seed)):
        needle = draw_needle(method, np.random.default_rng([seed, length, index]))
        ((start, end),) = sample.evidence
        assert sample.context[start:end] == needle.correct
        assert (sample.question, sample.answer) == (needle.question, needle.answer)
        assert sample.context.count(needle.answer) == 1
        assert all(sample.context.count(other) == 1 for other in needle.others)
        assert not sample.context.count("  ") and words(sample.context) > length - 60


def test_a_sample_depends_on_seed_length_and_index_alone() -> None:
    samples = make([200, 400], 3)
    assert samples == make([200, 400], 3)
    assert make([400], 5)[:3] == samples[3:]
    assert make([200], 1) == samples[:1]
    assert make([200], 3, seed=1) != samples[:3]
    assert len({sample.answer for sample in samples}) > 3


@pytest.mark.parametrize("per_length", [5, 20, 33])
def test_depths_cover_the_context_evenly(per_length: int) -> None:
    depths = sorted(s.evidence[0][0] / len(s.context) for s in make([2000], per_length))
    gaps = np.diff([0, *depths, 1])
    assert gaps.max() < 2.5 / per_length


def test_the_other_statements_stand_before_and_after() -> None:
    before = [
        sample.context.index(other) < sample.evidence[0][0]
        for index, sample in enumerate(make([300], 40))
        for other in draw_needle("r2", np.random.default_rng([0, 300, index])).others
    ]
    assert 20 < sum(before) < 60


def test_tokens_are_counted_sentence_by_sentence() -> None:
    """Only a few times is something long counted."""
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(words(text))
        return counted[-1]

    make([20_000], 1, count=count)
    assert sum(length > LONGEST_SENTENCE * 3 for length in counted) <= 3
    assert len(counted) < 20_000 / 8


def test_a_length_without_room_is_refused_before_any_sample() -> None:
    for method in METHODS:
        with pytest.raises(
            SamplesError, match="length is 12 tokens, the needles drawn for it need "
        ) as caught:
            built_in_samples(method, words, [1000, 12], 4, 0, PROSE)
        minimum = int(str(caught.value).split()[-1])
        assert 12 < minimum < 100


def test_the_least_length_is_the_needle_alone() -> None:
    minimum = 90
    needle = draw_needle("r2", np.random.default_rng([0, minimum, 0]))
    exact = sum(map(words, (needle.question, needle.correct, *needle.others)))
    ((sample),) = make([minimum], 1, count=lambda text: words(text) * minimum // exact)
    assert sorted(sample.context.split()) == sorted(
        " ".join((needle.correct, *needle.others)).split()
    )


def test_a_count_that_jumps_is_kept_below() -> None:
    (sample,) = make([300], 1, count=lambda text: words(text) + 100 * (words(text) > 200))
    assert 200 - LONGEST_SENTENCE <= words(sample.context) <= 200


def test_text_without_tokens_is_refused() -> None:
    with pytest.raises(SamplesError, match=r"the tokenizer has no tokens for the text '.*'"):
        make([10], 1, count=lambda _: 0)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("A dog ran home. " * 40)
    haystack = TextHaystack(tmp_path)
    assert len(list(built_in_samples("r", words, [150], 2, 0, haystack))) == 2
    samples: Iterator[ScoreSample] = built_in_samples("r", words, [400], 2, 0, haystack)
    with pytest.raises(SamplesError, match="has 160 tokens, too few for a context of 400 tokens"):
        next(samples)

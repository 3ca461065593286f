# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.needle.grading import entries
from headkv_vllm.needle.vocabulary import FILLER_IDS, KEYS, NEAR, PLACES, TOKEN_IDS, VALUES, WORDS
from tools.needle_training.training_batches import (
    IGNORED,
    LONG_VALUES,
    VALUES_PER_NEEDLE,
    Content,
    training_batch,
    value_accuracy,
)


def draw(seed, length=128, max_position=512, content="all kinds", batch_size=3, min_asked=1):
    rng = np.random.default_rng(seed)
    return training_batch(rng, batch_size, length, max_position, content, min_asked)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    length=st.sampled_from([64, 100, 256]),
    slack=st.integers(0, 300),
    content=st.sampled_from(get_args(Content)),
)
def test_positions_jump_inside_filler_and_stay_below_the_limit(seed, length, slack, content):
    batch = draw(seed, length, length + slack, content)
    batch.check_integrity()
    assert batch.input_ids.shape == (3, length)
    assert batch.position_ids.min() == 0 and batch.position_ids.max() < length + slack
    for row, column in (batch.position_ids.diff(dim=1) > 1).nonzero().tolist():
        assert int(batch.input_ids[row, column]) in FILLER_IDS
        assert int(batch.input_ids[row, column + 1]) in FILLER_IDS


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_next_words_and_every_answer_can_be_read_from_the_needles(seed):
    batch = draw(seed)
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        for i, label in enumerate(labels[:-1]):
            assert label in (IGNORED, ids[i + 1])
        words = [WORDS[i] for i in ids]
        answered = " ".join(WORDS[label] for label in labels if label != IGNORED)
        text = " ".join(words[: words.index("?")])
        for entry in (e for part in answered.split("<eos>") for e in entries(part)):
            if entry[1] in PLACES:
                assert f"{entry[0]} {NEAR} {entry[1]} ;" in text
            if entry[1] in PLACES or entry[1] in VALUES:
                assert " ".join(entry) in text
            else:
                assert " ".join(entry[:2]) + " ;" in text
                assert " ".join(entry[1:]) in text


def labelled_entries(batch):
    for labels in batch.labels.tolist():
        answered = " ".join(WORDS[label] for label in labels if label != IGNORED)
        yield from (entries(part) for part in answered.split("<eos>") if part.strip())


def test_first_only_plain_needles_and_pointers_are_asked_for():
    batches = [draw(seed, 256, content="plain") for seed in range(10)]
    asked = [entry for batch in batches for answer in labelled_entries(batch) for entry in answer]
    assert asked and not any(entry[1] in PLACES for entry in asked)
    assert max(map(len, asked)) <= 2 + max(VALUES_PER_NEEDLE) + 1


def test_all_kinds_are_asked_for_later():
    batch = draw(0, 512, batch_size=20)
    asked = [entry for answer in labelled_entries(batch) for entry in answer]
    assert any(entry[1] in PLACES for entry in asked)
    assert any(entry[1] in KEYS for entry in asked)
    assert any(len(entry) >= 2 + min(LONG_VALUES) and entry[1] in VALUES for entry in asked)
    text = [[WORDS[i] for i in row] for row in batch.input_ids.tolist()]
    assert any(words[: words.index("?")].count(";") == 1 for words in text)


def test_a_question_asks_for_the_fewest_keys_where_they_fit():
    (lone, several) = (
        np.mean([len(a) for a in labelled_entries(draw(3, 256, batch_size=20, min_asked=least))])
        for least in (1, 4)
    )
    assert several > lone


def test_the_labelled_part_of_a_repeated_segment_repeats():
    batch = draw(0, content="repeats")
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        period = labels.count(IGNORED)
        assert ids[1 : len(ids) - period] == ids[1 + period :]
        assert labels[period:-1] == ids[1 + period :]


def test_value_accuracy_counts_value_words_only():
    labels = torch.tensor([TOKEN_IDS[w] for w in ("adam", "red-1", "red-2", ";")])
    predicted = torch.tensor([TOKEN_IDS[w] for w in ("eva", "red-1", "red-3", ".")])
    assert value_accuracy(predicted, labels) == 0.5

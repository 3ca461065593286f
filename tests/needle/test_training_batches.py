# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.needle.grading import entries
from headkv_vllm.needle.training_batches import IGNORED, training_batch, value_accuracy
from headkv_vllm.needle.vocabulary import FILLER_IDS, TOKEN_IDS, WORDS


def draw(seed, length=128, max_position=512, repeats=False, batch_size=3):
    return training_batch(np.random.default_rng(seed), batch_size, length, max_position, repeats)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    length=st.sampled_from([64, 100, 256]),
    slack=st.integers(0, 300),
    repeats=st.booleans(),
)
def test_positions_jump_inside_filler_and_stay_below_the_limit(seed, length, slack, repeats):
    batch = draw(seed, length, length + slack, repeats)
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
            if entry[1].count("-"):
                assert " ".join(entry) in text
            else:
                assert " ".join(entry[:2]) + " ;" in text
                assert " ".join(entry[1:]) in text


def test_the_labelled_part_of_a_repeated_segment_repeats():
    batch = draw(0, repeats=True)
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        period = labels.count(IGNORED)
        assert ids[1 : len(ids) - period] == ids[1 + period :]
        assert labels[period:-1] == ids[1 + period :]


def test_value_accuracy_counts_value_words_only():
    labels = torch.tensor([TOKEN_IDS[w] for w in ("adam", "red-1", "red-2", ";")])
    predicted = torch.tensor([TOKEN_IDS[w] for w in ("eva", "red-1", "red-3", ".")])
    assert value_accuracy(predicted, labels) == 0.5

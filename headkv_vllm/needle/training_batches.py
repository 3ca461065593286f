# SPDX-License-Identifier: Apache-2.0
"""Batches of training sequences: a haystack, then as many question blocks as fit."""

from dataclasses import dataclass

import numpy as np
import torch

from headkv_vllm.needle.haystack import Haystack, bury, draw_needles
from headkv_vllm.needle.vocabulary import (
    ASK,
    BOS,
    EOS,
    FILLER_IDS,
    PAD,
    REPLY,
    SPECIAL_WORDS,
    TOKEN_IDS,
    VALUE_IDS,
    WORDS,
)

MAX_ASKED = 6
VALUES_PER_NEEDLE = (2, 3, 4, 4, 4, 5, 6)
QUESTION_SHARE = (0.25, 0.5)
"""Share of a sequence that is questions and answers, drawn evenly from this range per batch."""
TOKENS_PER_NEEDLE = (10, 45)
MAX_NEEDLES = 48
IGNORED = -100
"""Label of a token whose prediction is not trained (PyTorch's default)."""


@dataclass(frozen=True)
class TrainingBatch:
    """All int64 `[batch, num_tokens]`; `labels` are shifted: what the model should say next."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor

    def check_integrity(self) -> None:
        """Same shapes, and positions that only grow."""
        assert self.input_ids.shape == self.position_ids.shape == self.labels.shape
        assert bool((self.position_ids.diff(dim=1) > 0).all())


def training_batch(
    rng: np.random.Generator,
    batch_size: int,
    length: int,
    max_position: int,
    repeats: bool,
) -> TrainingBatch:
    """A batch of `batch_size` sequences of `length` tokens.

    Args:
        max_position: position ids jump at random places and stay below this (PoSE, 2309.10400).
        repeats: repeated random segments instead of needles, the simplest food for induction.
    """
    make = repeated_segment if repeats else question_sequence
    rows = [make(rng, length) for _ in range(batch_size)]
    ids, labels = (np.array(column) for column in zip(*rows, strict=True))
    positions = np.stack([jumping_positions(rng, row, max_position) for row in ids])
    return TrainingBatch(*(torch.from_numpy(array) for array in (ids, positions, labels)))


def question_sequence(rng: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of a haystack and its question blocks; only answers are labelled."""
    room = int(length * (1 - rng.uniform(*QUESTION_SHARE)))
    haystack = draw_haystack(rng, room, int(rng.choice(VALUES_PER_NEEDLE)))
    words, trained = list(haystack.words), [False] * len(haystack.words)
    while block := draw_question(rng, haystack, length + 1 - len(words)):
        question, answer = block
        words += question + answer
        trained += [False] * len(question) + [True] * len(answer)
    padding = length + 1 - len(words)
    ids = [TOKEN_IDS[word] for word in words + [PAD] * padding]
    trained += [False] * padding
    labels = [i if wanted else IGNORED for i, wanted in zip(ids, trained, strict=True)]
    return ids[:-1], labels[1:]


def draw_haystack(rng: np.random.Generator, length: int, num_values: int) -> Haystack:
    """A haystack with a random number of needles and pointers that fits into `length`."""
    wanted = int(length / rng.uniform(*TOKENS_PER_NEEDLE))
    fitting = (length - 1) * 4 // (5 * (num_values + 2))
    count = max(1, min(wanted, fitting, MAX_NEEDLES))
    num_pointers = min(count, (length - 1 - count * (num_values + 2)) // 3, 1 + count // 4)
    return bury(rng, draw_needles(rng, count, num_values, num_pointers), length)


def draw_question(
    rng: np.random.Generator, haystack: Haystack, room: int
) -> tuple[list[str], list[str]] | None:
    """A question for one to six keys and its answer with EOS, within `room` words, or None."""
    keys = list(haystack.needles)
    count = int(rng.integers(1, MAX_ASKED + 1))
    asked = [keys[i] for i in rng.permutation(len(keys))[:count].tolist()]
    while asked:
        question = [ASK, *asked, REPLY]
        answer = [word for key in asked for word in haystack.needles[key].answer] + [EOS]
        if len(question) + len(answer) <= room:
            return question, answer
        asked.pop()
    return None


def repeated_segment(rng: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    """BOS and random words that repeat with a random period; the repetition is labelled."""
    period = int(rng.integers(4, length // 2))
    segment = rng.integers(len(SPECIAL_WORDS), len(WORDS), size=period)
    ids = [TOKEN_IDS[BOS], *np.resize(segment, length).tolist()]
    return ids[:-1], [IGNORED] * period + ids[period + 1 :]


def jumping_positions(rng: np.random.Generator, ids: np.ndarray, max_position: int) -> np.ndarray:
    """Ascending positions below `max_position` with up to four jumps, all of them inside filler."""
    length = len(ids)
    positions = np.arange(length)
    filler = np.isin(ids, list(FILLER_IDS))
    places = np.flatnonzero(filler[:-1] & filler[1:]) + 1
    slack = max_position - length
    if slack > 0 and len(places) > 0:
        jumps = rng.choice(places, size=int(rng.integers(0, 5)))
        sizes = rng.multinomial(int(rng.integers(0, slack + 1)), [0.25] * 4)
        for jump, size in zip(jumps.tolist(), sizes.tolist(), strict=False):
            positions[jump:] += size
    return positions


def value_accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the labelled value words that are predicted, of int64 tensors of one shape."""
    is_value = (labels >= min(VALUE_IDS)) & (labels <= max(VALUE_IDS))
    return float((predicted == labels)[is_value].float().mean())

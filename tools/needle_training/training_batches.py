# SPDX-License-Identifier: Apache-2.0
"""Batches of training sequences: a haystack, then as many question blocks as fit."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from headkv_vllm.needle.haystack import Entry, EntryCounts, NeedleHaystack, bury, draw_entries
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

Content = Literal["all kinds", "plain", "repeats"]

MAX_ASKED = 6
VALUES_PER_NEEDLE = (2, 3, 4, 4, 4, 5, 6)
QUESTION_SHARE = (0.25, 0.5)
"""Share of a sequence that is questions and answers, drawn evenly from this range per batch."""
TOKENS_PER_NEEDLE = (10, 45)
MAX_NEEDLES = 48
LONE_SHARE = 0.1
"""Share of the sequences with one needle and one question."""
DISPUTED_SHARE = 0.6
"""Share of the other sequences with disputed keys, where they fit."""
MAX_DISPUTED = 6
LONG_SHARE = 0.3
"""Share of the other sequences with a needle of many values, where it fits."""
RARE_WEIGHT = 3.0
"""How much likelier a disputed key or one of many values is asked than another."""
LONG_VALUES = (7, 8, 9, 10, 10, 10, 11, 12)
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
    content: Content,
    min_asked: int = 1,
) -> TrainingBatch:
    """A batch of `batch_size` sequences of `length` tokens.

    Args:
        max_position: position ids jump at random places and stay below this (PoSE, 2309.10400).
        content: needles of all kinds; plain needles and pointers only; or repeated random segments
            instead of needles, the simplest food for induction.
        min_asked: minimum number of keys in a question, if they fit.
    """
    rows = [
        repeated_segment(rng, length)
        if content == "repeats"
        else question_sequence(rng, length, content == "all kinds", min_asked)
        for _ in range(batch_size)
    ]
    ids, labels = (np.array(column) for column in zip(*rows, strict=True))
    positions = np.stack([jumping_positions(rng, row, max_position) for row in ids])
    return TrainingBatch(*(torch.from_numpy(array) for array in (ids, positions, labels)))


def question_sequence(
    rng: np.random.Generator, length: int, all_kinds: bool, min_asked: int = 1
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a haystack and its question blocks; only answers are labelled."""
    if all_kinds and rng.random() < LONE_SHARE:
        haystack = draw_lone_haystack(rng, length)
    else:
        room = int(length * (1 - rng.uniform(*QUESTION_SHARE)))
        haystack = draw_haystack(rng, room, all_kinds)
    words, trained = list(haystack.words), [False] * len(haystack.words)
    while block := draw_question(rng, haystack, length + 1 - len(words), min_asked):
        question, answer = block
        words += question + answer
        trained += [False] * len(question) + [True] * len(answer)
    padding = length + 1 - len(words)
    ids = [TOKEN_IDS[word] for word in words + [PAD] * padding]
    trained += [False] * padding
    labels = [i if is_trained else IGNORED for i, is_trained in zip(ids, trained, strict=True)]
    return ids[:-1], labels[1:]


def draw_lone_haystack(rng: np.random.Generator, length: int) -> NeedleHaystack:
    """One needle in filler that leaves just the room for its question."""
    num_values = int(rng.choice((*VALUES_PER_NEEDLE, *LONG_VALUES)))
    entries = draw_entries(rng, EntryCounts(num_values, plain=1))["plain"]
    return bury(rng, entries, length + 1 - (num_values + 2) - 4)


def draw_haystack(rng: np.random.Generator, length: int, all_kinds: bool) -> NeedleHaystack:
    """A haystack with a random number of entries that fits into `length`.

    They are plain ones and pointers, and with `all_kinds` disputed and long ones too.
    """
    num_values = int(rng.choice(VALUES_PER_NEEDLE))
    num_needles = min(int(length / rng.uniform(*TOKENS_PER_NEEDLE)), MAX_NEEDLES)
    room = length - 1
    long_values = int(rng.choice(LONG_VALUES))
    long = int(all_kinds and rng.random() < LONG_SHARE and room >= 2 * (long_values + 2))
    room -= long * (long_values + 2)
    some = all_kinds and rng.random() < DISPUTED_SHARE
    disputed = int(rng.integers(1, MAX_DISPUTED + 1)) if some else 0
    disputed = min(disputed, num_needles // 2, room * 2 // 3 // (2 * (num_values + 3) + 4))
    room -= disputed * (2 * (num_values + 3) + 4)
    plain = max(1, min(num_needles - 2 * disputed - long, room * 4 // 5 // (num_values + 2)))
    room -= plain * (num_values + 2)
    pointers = max(0, min(plain, room // 3, 1 + plain // 4))
    counts = EntryCounts(num_values, plain, pointers, disputed, long, long_values)
    entries = [entry for kind in draw_entries(rng, counts).values() for entry in kind]
    return bury(rng, entries, length)


def draw_question(
    rng: np.random.Generator, haystack: NeedleHaystack, room: int, min_asked: int
) -> tuple[list[str], list[str]] | None:
    """A question and its answer with EOS, within `room` words, or None.

    It asks `min_asked` to six keys, or as many as fit.
    """
    entries = list(haystack.entries.values())
    count = min(len(entries), int(rng.integers(min_asked, MAX_ASKED + 1)))
    weights = np.array([_weight(entry) for entry in entries])
    drawn = rng.choice(len(entries), size=count, replace=False, p=weights / weights.sum())
    asked = [entries[i] for i in drawn.tolist()]
    while asked:
        question = [ASK, *(entry.key for entry in asked), REPLY]
        answer = [word for entry in asked for word in entry.answer] + [EOS]
        if len(question) + len(answer) <= room:
            return question, answer
        asked.pop()
    return None


def _weight(entry: Entry) -> float:
    rare = bool(entry.distractors) or len(entry.answer) >= min(LONG_VALUES) + 2
    return RARE_WEIGHT if rare else 1.0


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

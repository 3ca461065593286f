# SPDX-License-Identifier: Apache-2.0
"""The stages of training: lengths, positions, heads with full attention, and targets."""

from dataclasses import dataclass

from tools.needle_training.training_batches import Content


@dataclass(frozen=True)
class Stage:
    """One stage; it ends when the running value accuracy reaches `target`, or after `max_steps`."""

    lengths: tuple[int, ...]
    target: float
    tokens_per_step: int = 4096
    max_position: int = 2048
    content: Content = "all kinds"
    """The content of the other batches, see `training_batch`."""
    repeats: float = 0.0
    """Share of the batches that are repeated random segments."""
    restricted: float = 0.0
    """Share of the batches in which only `RETRIEVAL_HEADS` have full attention.

    The other heads then attend BOS and the last `RESTRICTED_WINDOW` tokens.
    """
    min_asked: int = 1
    """Minimum number of keys in a question, if they fit."""
    final_rate: float = 1.0
    """The learning rate falls linearly to this share at `max_steps`."""
    min_steps: int = 50
    max_steps: int = 4000


RETRIEVAL_HEADS = {1: (0, 1), 2: (0,)}
"""KV heads by layer that a restricted stage does not restrict. These few learn to retrieve."""
RESTRICTED_WINDOW = 4
OUT_OF_REACH = 2.0
"""The target of stages that always take `max_steps` steps."""

CURRICULUM = (
    Stage((64,), 0.50, tokens_per_step=2048, content="plain", repeats=0.3, restricted=1.0),
    Stage((64,), 0.75, tokens_per_step=2048, restricted=1.0),
    Stage((128,), 0.85, restricted=0.75, min_asked=2, max_steps=500),
    Stage((128, 256), 0.92, restricted=0.75, min_asked=3, max_steps=500),
    Stage((256, 512), 0.95, restricted=0.75, min_asked=3, max_steps=400),
    # The model learns the values long before the order of several keys. Short sequences with many
    # keys teach the order with the least computation.
    Stage(
        (128, 256),
        OUT_OF_REACH,
        max_position=4096,
        restricted=0.5,
        min_asked=3,
        max_steps=400,
    ),
    Stage((256, 512, 1024), 0.98, max_position=4096, restricted=0.5, min_asked=3, max_steps=300),
)
COOL_DOWN = Stage(
    (128, 256, 512, 1024, 2048),
    OUT_OF_REACH,
    max_position=4096,
    restricted=0.25,
    min_asked=2,
    final_rate=0.0,
    max_steps=800,
)
"""Trained last, with a learning rate that falls to zero."""

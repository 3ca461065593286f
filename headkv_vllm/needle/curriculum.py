# SPDX-License-Identifier: Apache-2.0
"""The stages of training: lengths, positions, which heads see everything, and when to go on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage; it ends when the running value accuracy reaches `target`, or after `max_steps`."""

    lengths: tuple[int, ...]
    target: float
    tokens_per_step: int = 4096
    max_position: int = 2048
    repeats: float = 0.0
    """Share of the batches that are repeated random segments."""
    restricted: float = 0.0
    """Share of the batches in which only `RETRIEVAL_HEADS` see everything.

    The other heads then see BOS and the last `RESTRICTED_WINDOW` tokens.
    """
    min_steps: int = 50
    max_steps: int = 4000


RETRIEVAL_HEADS = {1: (0, 1), 2: (0,)}
"""KV heads by layer that a restricted stage leaves free: retrieval gathers in these few."""
RESTRICTED_WINDOW = 4

CURRICULUM = (
    Stage((64,), 0.50, tokens_per_step=2048, repeats=0.3, restricted=1.0),
    Stage((64,), 0.75, tokens_per_step=2048, restricted=1.0),
    Stage((128,), 0.85, restricted=0.75),
    Stage((128, 256), 0.92, restricted=0.75),
    Stage((256, 512), 0.95, restricted=0.75),
    Stage((256, 512, 1024), 0.97, max_position=4096, restricted=0.5),
)
COOL_DOWN = Stage((256, 512, 1024, 2048), 2.0, max_position=4096, restricted=0.25, max_steps=500)
"""Trained last with a learning rate that falls to zero; its target is out of reach on purpose."""

# SPDX-License-Identifier: Apache-2.0
"""Training of the needle model as a state that can be saved, loaded and continued exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from headkv_vllm.output.files import replace_whole
from tools.needle_training.attention import reduced_masks
from tools.needle_training.curriculum import RESTRICTED_WINDOW, RETRIEVAL_HEADS, Stage
from tools.needle_training.model import initial_model
from tools.needle_training.training_batches import (
    IGNORED,
    Content,
    TrainingBatch,
    training_batch,
    value_accuracy,
)

LEARNING_RATE = 2e-3
WARM_UP_STEPS = 50
CLIP_NORM = 1.0
SMOOTHING = 0.95
"""Weight of the past in the running accuracy."""


@dataclass(frozen=True)
class StepReport:
    """What one step did; `accuracy` is the running share of value words predicted."""

    stage: int
    stage_step: int
    stage_steps: int
    step: int
    length: int
    loss: float
    accuracy: float


class Trainer:
    """Owns model, optimizer and progress through the stages.

    A step's batch is drawn from a generator seeded with (seed, step), so the number of steps is all
    the random state there is.
    """

    def __init__(self, seed: int, stages: Sequence[Stage]) -> None:
        self.seed, self.stages = seed, tuple(stages)
        self.model = initial_model(seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.step = self.stage = self.stage_step = 0
        self.accuracy = 0.0

    @property
    def finished(self) -> bool:
        """Whether the last stage is over."""
        return self.stage == len(self.stages)

    def train_step(self) -> StepReport:
        """One optimizer step on a fresh batch; moves on to the next stage when this one is done."""
        stage = self.stages[self.stage]
        rng = np.random.default_rng([self.seed, self.step])
        length, repeats = int(rng.choice(stage.lengths)), bool(rng.random() < stage.repeats)
        content: Content = "repeats" if repeats else stage.content
        batch_size = max(1, stage.tokens_per_step // length)
        batch = training_batch(
            rng, batch_size, length, stage.max_position, content, stage.min_asked
        )
        restricted = bool(rng.random() < stage.restricted)
        loss, accuracy = self._descend(batch, self._learning_rate(stage), restricted)
        self.step += 1
        self.stage_step += 1
        if not repeats:
            self.accuracy = SMOOTHING * self.accuracy + (1 - SMOOTHING) * accuracy
        report = StepReport(
            self.stage, self.stage_step, stage.max_steps, self.step, length, loss, self.accuracy
        )
        self._advance(stage)
        return report

    def _descend(
        self, batch: TrainingBatch, learning_rate: float, restricted: bool
    ) -> tuple[float, float]:
        labelled = batch.labels != IGNORED
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            layer_masks=self._masks(batch.input_ids.shape[1]) if restricted else None,
        ).last_hidden_state
        logits = self.model.lm_head(hidden[labelled])
        loss = cross_entropy(logits, batch.labels[labelled])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return loss.item(), value_accuracy(logits.argmax(-1), batch.labels[labelled])

    def _masks(self, num_tokens: int) -> list[torch.Tensor]:
        config = self.model.config
        heads = torch.zeros(config.num_hidden_layers, config.num_key_value_heads, dtype=torch.bool)
        for layer, free in RETRIEVAL_HEADS.items():
            heads[layer, list(free)] = True
        group = config.num_attention_heads // config.num_key_value_heads
        return reduced_masks(heads, group, num_tokens, RESTRICTED_WINDOW, prompt_length=None)

    def _learning_rate(self, stage: Stage) -> float:
        warm = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        fallen = (1 - stage.final_rate) * self.stage_step / stage.max_steps
        return LEARNING_RATE * warm * (1 - fallen)

    def _advance(self, stage: Stage) -> None:
        reached = self.stage_step >= stage.min_steps and self.accuracy >= stage.target
        if reached or self.stage_step >= stage.max_steps:
            self.stage += 1
            self.stage_step = 0
            self.accuracy = 0.0

    def save(self, path: Path) -> None:
        """Write everything that a run continues from. An interrupted write keeps the old file."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": [self.seed, self.step, self.stage, self.stage_step],
            "accuracy": self.accuracy,
        }
        replace_whole(path, lambda partial: torch.save(state, partial))

    def load(self, path: Path) -> None:
        """Continue from `save`'s file; its seed replaces this trainer's."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seed, self.step, self.stage, self.stage_step = state["progress"]
        self.accuracy = state["accuracy"]
        self.check_integrity()

    def check_integrity(self) -> None:
        """Progress lies within the stages, and every weight is a finite number."""
        assert 0 <= self.stage <= len(self.stages) and 0 <= self.stage_step <= self.step
        assert all(bool(weight.isfinite().all()) for weight in self.model.parameters())

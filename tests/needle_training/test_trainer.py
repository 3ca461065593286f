# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from headkv_vllm.errors import SettingsError
from tools.needle_training.curriculum import Stage
from tools.needle_training.train import STATE_FILE, run, start
from tools.needle_training.trainer import LEARNING_RATE, Trainer

STAGES = (
    Stage((64,), 2.0, tokens_per_step=256, repeats=0.5, restricted=0.5, max_steps=3),
    Stage((64, 96), 2.0, tokens_per_step=256, max_steps=5),
)


def test_an_interrupted_and_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = start(tmp_path / "whole", 4, False, STAGES)
    run(whole, tmp_path / "whole")

    broken = tmp_path / "broken"
    for steps, resume in ((2, False), (3, True), (None, True)):
        # Another seed: what is resumed keeps its own.
        trainer = start(broken, 9 if resume else 4, resume, STAGES)
        run(trainer, broken, max_steps=steps)

    assert trainer.finished and whole.finished and trainer.step == whole.step == 8
    expected = whole.model.state_dict()
    for name, weights in trainer.model.state_dict().items():
        assert torch.equal(weights, expected[name]), name
    assert not torch.equal(
        expected["model.norm.weight"], Trainer(4, STAGES).model.state_dict()["model.norm.weight"]
    )


def test_a_broken_off_save_leaves_the_old_state(tmp_path, monkeypatch):
    trainer = start(tmp_path, 0, False, STAGES)
    run(trainer, tmp_path, max_steps=1)

    def full_disk(state, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    trainer.train_step()
    with pytest.raises(OSError, match="no space"):
        trainer.save(tmp_path / STATE_FILE)
    assert start(tmp_path, 0, True, STAGES).step == 1


def test_a_stage_ends_on_accuracy_and_its_learning_rate_falls_over_its_steps():
    easy = Stage((64,), 0.0, tokens_per_step=64, min_steps=2, max_steps=100)
    trainer = Trainer(0, (easy, Stage((64,), 2.0, tokens_per_step=64, final_rate=0.5, max_steps=4)))
    reports = [trainer.train_step() for _ in range(6)]
    assert [report.stage for report in reports] == [0, 0, 1, 1, 1, 1] and trainer.finished
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] == pytest.approx(LEARNING_RATE * 6 / 50 * (1 - 0.5 * 3 / 4))


@pytest.mark.parametrize(
    ("resume", "allowed"), [(False, "a folder without one"), (True, "an existing run")]
)
def test_a_run_is_neither_overwritten_nor_made_up(tmp_path, resume, allowed):
    if not resume:
        start(tmp_path, 0, False, STAGES).save(tmp_path / STATE_FILE)
    with pytest.raises(SettingsError, match=allowed):
        start(tmp_path, 0, resume, STAGES)

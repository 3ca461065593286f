# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.needle_training.train --out DIR`: train the needle model on one CPU core.

Two choices shape the result, and reports of results must name them. The first layer starts with a
previous-token prior (model.py). While sequences are short, only a few heads may attend further back
than 4 tokens (curriculum.py), so that few heads learn to retrieve, as in large models.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import LlamaForCausalLM

from headkv_vllm.errors import SettingsError
from headkv_vllm.needle.tasks import TASKS, generate_samples
from headkv_vllm.needle.vocabulary import build_tokenizer
from tools.needle_training.answers import question_accuracy
from tools.needle_training.curriculum import COOL_DOWN, CURRICULUM, Stage
from tools.needle_training.trainer import Trainer

STATE_FILE = "training.pt"
SAVE_EVERY = 50
SHIPPED_SEED = 1
EVALUATION_SEED = 20_241
EVALUATED_PROMPTS = 50


def train(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the training state.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = SHIPPED_SEED,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out.")] = False,
) -> None:
    """Train the needle model and write it to --out as a Hugging Face folder."""
    torch.set_num_threads(threads)
    try:
        trainer = start(out, seed, resume)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    run(trainer, out)
    export(trainer.model, out)
    report(out, Console())


def start(
    out: Path, seed: int, resume: bool, stages: Sequence[Stage] = (*CURRICULUM, COOL_DOWN)
) -> Trainer:
    """A new trainer, or with `resume` the trainer whose state is in `out`.

    Raises SettingsError when there is no state to resume, or one that would be overwritten.
    """
    state = out / STATE_FILE
    if resume != state.exists():
        allowed = "an existing run" if resume else "a folder without one, or --resume"
        raise SettingsError(f"out is {str(out)!r}, allowed is {allowed} (looked for {STATE_FILE})")
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(seed, stages)
    if resume:
        trainer.load(state)
    return trainer


def run(trainer: Trainer, out: Path, max_steps: int | None = None) -> None:
    """Train to the end, or for `max_steps` steps. Saves the state regularly and at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=None)
        first = trainer.step
        while not trainer.finished and trainer.step - first != max_steps:
            result = trainer.train_step()
            text = (
                f"stage {result.stage + 1} of {len(trainer.stages)}, step {result.step}, "
                f"{result.length} tokens, loss {result.loss:.3f}, accuracy {result.accuracy:.3f}"
            )
            progress.update(
                bar, description=text, completed=result.stage_step, total=result.stage_steps
            )
            if result.step % SAVE_EVERY == 0:
                trainer.save(out / STATE_FILE)
    trainer.save(out / STATE_FILE)


def export(model: LlamaForCausalLM, out: Path) -> None:
    """Write model and tokenizer to `out` as a Hugging Face folder."""
    model.save_pretrained(out)
    build_tokenizer(model.config.max_position_embeddings).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def report(out: Path, console: Console) -> None:
    """Print the accuracy per question of the model in `out` on fresh prompts.

    It is loaded again, because the attention for training does not support a KV cache.
    """
    model = LlamaForCausalLM.from_pretrained(out).eval()
    tokenizer = build_tokenizer(model.config.max_position_embeddings)
    for tokens in (1024, 2048):
        for task in TASKS:
            samples = list(generate_samples(task, tokens, EVALUATED_PROMPTS, EVALUATION_SEED))
            accuracy = question_accuracy(model, tokenizer, samples)
            console.print(f"{task}, {tokens} tokens: {accuracy:.3f} of the questions answered")


if __name__ == "__main__":
    typer.run(train)

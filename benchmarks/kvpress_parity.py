# SPDX-License-Identifier: Apache-2.0
"""Our policies beside kvpress's presses: the same model and prompts, as many tokens kept.

Run as `python -m benchmarks.kvpress_parity` in the checkout. kvpress gets a virtual environment of
its own, made at the first run. What was answered before is not asked again: an interrupted run
goes on where it stopped. Answers of another checkpoint, of other prompts, versions or code are not
used. Results go to `benchmarks/results/kvpress.md` and `.json`.
"""

import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import Progress
from transformers import AutoTokenizer

from benchmarks import kvpress_engine
from benchmarks.kvpress_answers import (
    Answers,
    checkpoint_digest,
    code_digest,
    prompt_id,
    read_answers,
    read_seconds,
    run_name,
    time_key,
    timed,
)
from benchmarks.kvpress_cells import Cell, cells, kept_tokens
from benchmarks.kvpress_environment import ROOT, make_environment, versions
from benchmarks.kvpress_report import Line, Side, compare, document, page
from benchmarks.score_cost import describe_machine
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.paths import checkpoint_path
from headkv_vllm.needle.tasks import TASKS, Sample, Task, generate_samples
from headkv_vllm.scores.identity import identify_checkpoint

SEED: Final = 41
SPARE_TOKENS: Final = 4
"""Room after the answer, so that an answer that goes on is seen to."""
BATCH_SIZE: Final = 10
OURS: Final = ("vllm", "torch", "transformers", "numpy")
THEIRS: Final = ("kvpress", "torch", "transformers", "numpy")
RESULTS: Final = ROOT / "benchmarks" / "results"
DEFAULT_TASKS: Final = ["multi-query", "multi-key"]
DEFAULT_BUDGETS: Final = [64, 128, 256]

Prompts = dict[tuple[Task, int], list[Sample]]


def main(
    prompts: Annotated[int, typer.Option(min=2, help="Of each task.")] = 200,
    tokens: Annotated[int, typer.Option(min=64, max=1984, help="Of each prompt.")] = 1024,
    task: Annotated[list[str], typer.Option(help=f"Of {', '.join(TASKS)}.")] = DEFAULT_TASKS,
    budget: Annotated[list[int], typer.Option(min=9, help="Per KV head.")] = DEFAULT_BUDGETS,
    cache: Annotated[Path, typer.Option(help="For the environment and answers.")] = ROOT / ".cache",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Compare both sides and write the results."""
    console = Console(stderr=True)
    work = cache / "kvpress-parity"
    work.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    grid = list(cells(known_tasks(task), tokens, budget, identify_checkpoint(checkpoint_path())))
    drawn = draw(grid, prompts)
    python = make_environment(cache / "kvpress-venv", console.log)
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.kvpress_parity", *sys.argv[1:]]),
        "machine": describe_machine().rpartition(", torch")[0],
        "versions": {name: version(name) for name in OURS},
        "kvpress_versions": versions(cache / "kvpress-venv", THEIRS),
        "checkpoint": checkpoint_digest(checkpoint_path()),
        "code": code_digest(),
        "num_tokens": tokens,
        "prompts": prompts,
        "seed": SEED,
    }
    about["minutes"] = answer_all(grid, drawn, about, python, work, console)
    if about["code"] != code_digest():
        console.log("warning: this package changed while it was compared: run it again")
    answers = read_answers(work / "answers.jsonl")
    lines = [compare_cell(cell, drawn, about, answers) for cell in grid]
    out.mkdir(parents=True, exist_ok=True)
    (out / "kvpress.json").write_text(json.dumps(document(lines, about), indent=1) + "\n")
    (out / "kvpress.md").write_text(page(lines, about))
    console.log(f"written: {out / 'kvpress.md'}")


def known_tasks(names: Sequence[str]) -> list[Task]:
    """`names`, if all are tasks. Raises typer.BadParameter."""
    for name in names:
        if name not in TASKS:
            raise typer.BadParameter(f"task is {name!r}, allowed are {', '.join(TASKS)}")
    return [task for task in TASKS if task in names]


def draw(grid: Sequence[Cell], number: int) -> Prompts:
    """The prompts of each task and length."""
    return {
        (task, length): list(generate_samples(task, length, number, SEED))
        for task, length in dict.fromkeys((cell.task, cell.num_tokens) for cell in grid)
    }


def answer_all(
    grid: Sequence[Cell],
    drawn: Prompts,
    about: dict[str, Any],
    python: Path,
    work: Path,
    console: Console,
) -> dict[str, float]:
    """Ask both sides what is not yet known. Returns each side's minutes, with earlier runs'."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    prompts = [
        {
            "id": prompt_id(sample, index),
            "task": sample.task,
            "ids": tokenizer.encode(sample.prompt),
            "max_tokens": len(sample.answer.split()) + SPARE_TOKENS,
        }
        for samples in drawn.values()
        for index, sample in enumerate(samples)
    ]
    (work / "prompts.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in prompts))
    done, seconds = read_answers(work / "answers.jsonl"), work / "seconds.json"
    ours, theirs = (
        time_key({run_name(side, about) for side in sides}, about["prompts"])
        for sides in ({cell.ours for cell in grid}, {cell.theirs for cell in grid})
    )
    with Progress(console=console) as progress:
        with timed(seconds, theirs):
            ask_kvpress(grid, prompts, about, done, python, work, progress)
        with timed(seconds, ours):
            ask_engine(grid, prompts, about, done, work, progress)
    noted = read_seconds(seconds)
    return {"engine": noted[ours] / 60, "kvpress": noted[theirs] / 60}


def ask_kvpress(
    grid: Sequence[Cell],
    prompts: list[dict[str, Any]],
    about: dict[str, Any],
    done: Answers,
    python: Path,
    work: Path,
    progress: Progress,
) -> None:
    """All presses in one process of the other environment."""
    runs = {run_name(cell.theirs, about): cell.theirs for cell in grid}
    request = {
        "model": str(checkpoint_path()),
        "prompts": str(work / "prompts.jsonl"),
        "answers": str(work / "answers.jsonl"),
        "batch_size": BATCH_SIZE,
        "jobs": [{"run": name, **theirs.arguments()} for name, theirs in runs.items()],
    }
    (work / "request.json").write_text(json.dumps(request))
    missing = sum(
        len(prompt["ids"]) == theirs.num_tokens and (name, prompt["id"]) not in done
        for name, theirs in runs.items()
        for prompt in prompts
    )
    if not missing:
        return
    bar = progress.add_task("kvpress", total=missing)
    side = Path(__file__).with_name("kvpress_side.py")
    with (work / "kvpress.log").open("w") as log:
        process = subprocess.Popen(
            [str(python), str(side), str(work / "request.json")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            progress.advance(bar, int(line))
    if process.wait():
        raise SystemExit(f"error: kvpress ended with {process.returncode}; see {log.name}")


def ask_engine(
    grid: Sequence[Cell],
    prompts: list[dict[str, Any]],
    about: dict[str, Any],
    done: Answers,
    work: Path,
    progress: Progress,
) -> None:
    """Each way to run the engine, one engine at a time."""
    lengths = defaultdict(set)
    for cell in grid:
        lengths[cell.ours].add(cell.num_tokens)
    for ours in lengths:
        name = run_name(ours, about)
        missing = [
            prompt
            for prompt in prompts
            if len(prompt["ids"]) in lengths[ours] and (name, prompt["id"]) not in done
        ]
        if missing:
            bar = progress.add_task(f"{ours}, {ours.budget}", total=len(missing))
            kvpress_engine.answer(
                str(checkpoint_path()),
                ours.settings(),
                missing,
                name,
                work / "answers.jsonl",
                work / "engine.log",
                partial(progress.advance, bar),
            )


def compare_cell(cell: Cell, drawn: Prompts, about: dict[str, Any], answers: Answers) -> Line:
    """One line of the report."""
    samples = drawn[cell.task, cell.num_tokens]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    ids = [prompt_id(sample, index) for index, sample in enumerate(samples)]
    ours = [answers[run_name(cell.ours, about), one] for one in ids]
    theirs = [answers[run_name(cell.theirs, about), one] for one in ids]
    counts = [head for one in theirs for layer in one["kept"] for head in layer]
    identity = identify_checkpoint(checkpoint_path())
    kept = kept_tokens(cell.ours, cell.num_tokens, identity)
    questions = sum(len(sample.keys) for sample in samples)
    return compare(
        cell,
        questions,
        side(samples, ours, tokenizer.decode, kept),
        side(samples, theirs, tokenizer.decode, sum(counts) / len(counts), counts),
    )


def side(
    samples: Sequence[Sample],
    answers: Sequence[dict[str, Any]],
    decode: Callable[[list[int]], str],
    kept: float,
    counts: Sequence[int] | None = None,
) -> Side:
    """Grade one side's answers to `samples`."""
    texts = tuple(decode(answer["ids"]) for answer in answers)
    grades = [grade(sample.answer, text) for sample, text in zip(samples, texts, strict=True)]
    scores = tuple(one.questions_right / one.questions for one in grades)
    values = tuple(one.values_right / one.values for one in grades)
    heads = (min(counts), max(counts)) if counts else (None, None)
    return Side(scores, values, texts, kept, *heads)


if __name__ == "__main__":
    typer.run(main)

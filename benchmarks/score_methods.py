# SPDX-License-Identifier: Apache-2.0
"""Which head scores give the best answers: one engine, one cache, a policy for each score file.

Every prompt is read once: the cells of a task share it by the prefix cache. Nothing in a cell
depends on the others, since a request brings its budget and its policy.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import typer
from benchmarks.kvpress_report import percent

from benchmarks.harness.command import Out, command_line
from benchmarks.harness.report import RESULTS, Report
from headkv_vllm.evaluation.intervals import bootstrap_interval
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.registry import find_task
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.scores.file import read_score_file
from headkv_vllm.scores.folding import fold_query_heads

FloatArray = npt.NDArray[np.float64]

ROOT: Final = Path(__file__).parents[1]
SCORES: Final = ROOT / ".cache" / "score-methods"
OPTIONS: Final = {"grad": ("--method", "grad"), "r2": ("--method", "r2"), "r": ("--method", "r")}
"""What `headkv score` is called with for each file."""
MIXTURE: Final = "grad+r2"
"""The mean of the two, each with a sum of 1."""
FULL, UNIFORM = "full", "uniform"
SEED: Final = 1000
"""Of the prompts. Scores come from other texts, drawn with the seed 0."""
CHAT: Final = "chat/"
"""What the name of a task begins with when its question is asked in the chat format."""
TASKS: Final = (
    *("ruler/niah_single_2", "ruler/niah_multikey_1", "ruler/niah_multivalue", "ruler/vt"),
    *("chat/ruler/niah_single_2", "chat/ruler/niah_multikey_1"),
)
Cell = tuple[str, str, int]
"""Task, scores and budget; the budget of FULL is 0."""


def main(
    model: Annotated[Path, typer.Argument(help="The checkpoint's folder: scripts/real-model.")],
    prompts: Annotated[int, typer.Option(min=2, help="Of each task.")] = 50,
    tokens: Annotated[int, typer.Option(min=256, help="Of each prompt.")] = 1024,
    budget: Annotated[list[int], typer.Option(help="Tokens per KV head.")] = [64, 128, 256],  # noqa: B006
    task: Annotated[list[str], typer.Option(help="RULER's names; chat/NAME asks in a chat.")] = [  # noqa: B006
        *TASKS
    ],
    setting: Annotated[list[str], typer.Option(help="NAME=NUMBER of the engine's settings.")] = [],  # noqa: B006
    most_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 48,
    name: Annotated[str, typer.Option(help="Of the page.")] = "score_methods",
    out: Out = RESULTS,
) -> None:
    """Make the score files that are not there yet, ask, and write the results."""
    settings = {key: int(value) for key, value in (text.split("=") for text in setting)}
    load = Load(model, prompts, tokens, tuple(budget), tuple(task), settings, most_tokens)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        found = executor.submit(grades_of, load, score_files(model)).result()
    Report(
        name,
        "Which head scores give the best answers?",
        command_line("score_methods"),
        [*rows(load, found)],
        bars=(),
        notes=[NOTE.format(prompts=prompts, tokens=tokens)],
    ).write(out)


NOTE: Final = (
    "{prompts} prompts of {tokens:,} tokens for each task, the same in each column; right answers "
    "in percent, as RULER counts them. The last two columns are differences, prompt by prompt "
    "(bootstrap, 95 %). `chat/` asks the question in the model's chat format."
)


@dataclass(frozen=True)
class Load:
    """What is asked. settings: the engine's, besides the budget and the policy."""

    model: Path
    prompts: int
    tokens: int
    budgets: tuple[int, ...]
    tasks: tuple[str, ...]
    settings: dict[str, int]
    most_tokens: int


def score_files(model: Path) -> dict[str, Path]:
    """A file for each of OPTIONS, made where it is missing."""
    SCORES.mkdir(parents=True, exist_ok=True)
    files = {name: SCORES / f"{name}.json" for name in OPTIONS}
    for name, file in files.items():
        if not file.exists():
            command = ["-m", "headkv_vllm.cli", "score", str(model), *OPTIONS[name]]
            subprocess.run([sys.executable, *command, "--out", str(file)], check=True)
    return files


def read_scores(files: dict[str, Path]) -> dict[str, FloatArray]:
    """Scores of KV heads [L, H] with a sum of 1, by the name that they are shown by."""
    scores = {}
    for name, path in files.items():
        file = read_score_file(path)
        folded = fold_query_heads(file.values, file.model.identity.num_kv_heads, "mean")
        scores[name] = folded / folded.sum()
    return {**scores, MIXTURE: (scores["grad"] + scores["r2"]) / 2}


def serve_all(scores: dict[str, FloatArray]) -> None:
    """Make a policy of each of `scores`: HeadKV's, with these in place of the engine's."""
    from headkv_vllm.budgets.headkv import headkv_shares
    from headkv_vllm.budgets.policy import Policy, Shares

    from headkv_vllm import config
    from headkv_vllm.budgets.policies import POLICIES

    def with_scores(own: FloatArray) -> Shares:
        return lambda scores, blocks, full, settings: headkv_shares(own, blocks, full, settings)

    for name, own in scores.items():
        POLICIES[name] = Policy(with_scores(own))  # type: ignore[index]
    # What a request may ask for.
    config.PolicyName = Literal[(*get_args(config.PolicyName), *scores)]  # type: ignore[misc]


def grades_of(load: Load, files: dict[str, Path]) -> dict[Cell, list[float]]:
    """The grade of each prompt, from 0 to 1, by cell."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "4"}
    scores = read_scores(files)
    serve_all(scores)
    from vllm import LLM

    llm = LLM(
        str(load.model),
        dtype="float32",
        attention_backend="HEADKV",
        block_size=16,
        max_model_len=load.tokens + 512,
        enforce_eager=True,
        additional_config={"headkv": load.settings},
    )
    found: dict[Cell, list[float]] = {}
    for task in load.tasks:
        samples = draw(task, load, llm.get_tokenizer())
        found[task, FULL, 0] = ask(llm, samples, load, UNIFORM, 0)
        for budget in load.budgets:
            for name in (UNIFORM, *scores):
                found[task, name, budget] = ask(llm, samples, load, name, budget)
                print(task, budget, name, f"{mean(found[task, name, budget]):.2f}", flush=True)
    return found


def draw(task: str, load: Load, tokenizer: Any) -> list[Sample]:
    """The prompts of `task`, as they are sent."""
    is_chat = task.startswith(CHAT)
    source = find_task(task.removeprefix(CHAT))
    room = len(chat(tokenizer, "")) if is_chat else 0
    samples = source.samples(load.prompts, load.tokens - room, SEED, tokenizer, None)
    return [in_chat(sample, tokenizer) if is_chat else sample for sample in samples]


def in_chat(sample: Sample, tokenizer: Any) -> Sample:
    """The question alone, without the beginning of its answer, as a user's message."""
    question = sample.question.partition("?")[0] + "?"
    text = chat(tokenizer, sample.context + question, tokenize=False)
    return replace(sample, context=text, question="")


def chat(tokenizer: Any, text: str, tokenize: bool = True) -> Any:
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(rendered, add_special_tokens=False) if tokenize else rendered


def ask(llm: Any, samples: Sequence[Sample], load: Load, policy: str, budget: int) -> list[float]:
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    asked = [
        SamplingParams(
            temperature=0,
            max_tokens=min(sample.max_new_tokens, load.most_tokens),
            extra_args={"headkv_budget": budget, "headkv_policy": policy},
        )
        for sample in samples
    ]
    prompts = [
        {
            "prompt_token_ids": tokenizer.encode(
                sample.prompt, add_special_tokens=bool(sample.question)
            )
        }
        for sample in samples
    ]
    outputs = llm.generate(prompts, asked, use_tqdm=False)
    metric = METRICS[find_task(samples[0].task).metric]
    return [
        metric(sample, output.outputs[0].text)
        for sample, output in zip(samples, outputs, strict=True)
    ]


def rows(load: Load, found: dict[Cell, list[float]]) -> list[dict[str, Any]]:
    """A line for each task and budget, and the means over the tasks."""
    names = [UNIFORM, *OPTIONS, MIXTURE]
    lines = [
        row(task, budget, [task], names, found) for task in load.tasks for budget in load.budgets
    ]
    return lines + [row("mean", budget, load.tasks, names, found) for budget in load.budgets]


def row(
    title: str,
    budget: int,
    tasks: Sequence[str],
    names: Sequence[str],
    found: dict[Cell, list[float]],
) -> dict[str, Any]:
    def grades(name: str) -> list[float]:
        return [g for task in tasks for g in found[task, name, 0 if name == FULL else budget]]

    shown = {name: f"{100 * mean(grades(name)):.0f}" for name in (FULL, *names)}
    grad = grades("grad")
    differences = {
        f"grad less {name}": percent(
            bootstrap_interval([a - b for a, b in zip(grad, grades(name), strict=True)], SEED),
            "+",
        )
        for name in (UNIFORM, "r2")
    }
    return {"task": title, "budget": budget, **shown, **differences}


if __name__ == "__main__":
    typer.run(main)

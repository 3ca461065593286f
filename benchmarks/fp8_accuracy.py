# SPDX-License-Identifier: Apache-2.0
"""What an fp8 cache costs in answers: the needle model's, with entries of bfloat16 and of e4m3.

Only GPUs store fp8; here the CPU backend rounds what it writes to the same numbers. Both sides are
real engines on the same prompts, one after the other.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean
from typing import Annotated, Any, Final

import typer
from rich.progress import track

from benchmarks.harness.report import RESULTS, Out, Report, command_line
from benchmarks.harness.rounded_entries import round_what_is_written
from headkv_vllm.evaluation.summary import Interval, bootstrap_interval
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.tasks import TASKS, NeedleSample, NeedleTaskName, generate_samples

SEED: Final = 47
SPARE_TOKENS: Final = 4
"""Room after the answer, so that an answer that goes on is seen to."""
NAMES: Final = {False: "bfloat16", True: "e4m3"}
Scores = dict[tuple[NeedleTaskName, int], list[float]]
"""Of each prompt, by task and budget: the share of its questions that are answered."""


def main(
    prompts: Annotated[int, typer.Option(min=2, help="Of each task.")] = 200,
    tokens: Annotated[int, typer.Option(min=64, max=1984, help="Of each prompt.")] = 1024,
    budget: Annotated[
        list[int], typer.Option(min=0, help="Of tokens per KV head; 0 keeps the whole prompt.")
    ] = [0, 64, 128, 256],  # noqa: B006
    out: Out = RESULTS,
) -> None:
    """Compare both and write the results."""
    drawn = {task: list(generate_samples(task, tokens, prompts, SEED)) for task in TASKS}
    found = {rounds: in_a_process(drawn, budget, rounds) for rounds in NAMES}
    rows = [
        row(task, budget, found[False][task, budget], found[True][task, budget])
        for task, budget in found[False]
    ]
    Report(
        "fp8_accuracy",
        "What does an fp8 cache cost in answers?",
        command_line("fp8_accuracy"),
        rows,
        bars=(),
        notes=[NOTE.format(prompts=prompts, tokens=tokens)],
    ).write(out)


NOTE: Final = (
    "The needle model in bfloat16, {prompts} prompts of {tokens:,} tokens for each task; budgets "
    "are tokens kept per KV head, 0 the whole prompt. Scores are the questions answered, in "
    "percent; the interval is of the difference, prompt by prompt (bootstrap, 95 %). One of no "
    "width says only that these prompts do not differ. Entries of e4m3 are those of "
    "`--kv-cache-dtype fp8` with a scale of 1: the CPU backend, which has no fp8, rounds what it "
    "writes. In `tests/engine/test_gpu_backends.py` that gives the tokens of the backend for GPUs, "
    "with the plain reference of the kernel that stores; `scripts/gpu-check` compares the two."
)


def row(
    task: NeedleTaskName, budget: int, plain: Sequence[float], rounded: Sequence[float]
) -> dict[str, Any]:
    differences = [ours - theirs for ours, theirs in zip(rounded, plain, strict=True)]
    return {
        "task": task,
        "budget": budget,
        f"{NAMES[False]}, %": f"{100 * mean(plain):.1f}",
        f"{NAMES[True]}, %": f"{100 * mean(rounded):.1f}",
        "difference": percent(bootstrap_interval(differences, SEED), "+"),
        "prompts that differ": sum(difference != 0 for difference in differences),
    }


def in_a_process(
    drawn: dict[NeedleTaskName, list[NeedleSample]], budgets: Sequence[int], rounds: bool
) -> Scores:
    """One side, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(scores_of, drawn, budgets, rounds).result()


def scores_of(
    drawn: dict[NeedleTaskName, list[NeedleSample]], budgets: Sequence[int], rounds: bool
) -> Scores:
    """The scores that an engine gets. rounds: whether it holds e4m3 numbers."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    if rounds:
        round_what_is_written()
    llm = LLM(
        str(checkpoint_path()),
        dtype="bfloat16",
        attention_backend="HEADKV",
        block_size=16,
        max_model_len=2048,
        enforce_eager=True,
        # What one budget has read is no shortcut for the next.
        enable_prefix_caching=False,
    )
    cells = [(task, budget) for task in drawn for budget in budgets]
    return {
        (task, budget): ask(llm, drawn[task], budget)
        for task, budget in track(cells, NAMES[rounds])
    }


def ask(llm: Any, samples: Sequence[NeedleSample], budget: int) -> list[float]:
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    asked = [
        SamplingParams(
            temperature=0,
            max_tokens=len(tokenizer.encode(sample.answer)) + SPARE_TOKENS,
            extra_args={"headkv_budget": budget},
        )
        for sample in samples
    ]
    outputs = llm.generate([sample.prompt for sample in samples], asked, use_tqdm=False)
    grades = (
        grade(sample.answer, output.outputs[0].text)
        for sample, output in zip(samples, outputs, strict=True)
    )
    return [found.questions_right / found.questions for found in grades]


def percent(interval: Interval, sign: str = "") -> str:
    """Of shares: their mean, and its bounds."""
    mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.kvpress FOLDER`: kvpress beside what `headkv eval` left in FOLDER.

The same model, data type, prompts and metric; each press keeps as many tokens of a prompt as our
policies with the same budget. kvpress gets a virtual environment of its own, made at the first run.
What was answered is not asked again. The report goes to FOLDER/kvpress.md, with pictures.
"""

import os
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks.kvpress.asking import ask
from benchmarks.kvpress.environment import ROOT, make_environment, versions
from benchmarks.kvpress.results import PREFIX, Run, same_answers
from headkv_vllm.evaluation.plots import write_plots
from headkv_vllm.evaluation.report import report
from headkv_vllm.evaluation.summary import summarise
from headkv_vllm.output.command_line import readable_errors

PRESSES: Final = "snapkv,snapkv_64,adakv,pyramidkv,keydiff,expected,kvzip"
PACKAGES: Final = ("kvpress", "torch", "transformers")


def main(
    folder: Annotated[Path, typer.Argument(help="What headkv eval wrote: its --out.")],
    presses: Annotated[
        str,
        typer.Option(
            help=f"Of {PRESSES}, tova, critical_adakv, ada_expected, streaming. kvzip takes as "
            "long as all others together."
        ),
    ] = PRESSES,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="The first so many of each task and length.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="More than there are idle cores slow it down.")
    ] = len(os.sched_getaffinity(0)),
    cache: Annotated[Path, typer.Option(help="For the environment.")] = ROOT / ".cache",
) -> None:
    """Ask kvpress's presses what headkv eval has asked, and report both."""
    console = Console(stderr=True)
    with readable_errors():
        run = Run.read(folder)
        environment = cache / "kvpress-venv"
        python = make_environment(environment, console.log)
        ask(run, presses.split(","), prompts, python, threads, console)
        results = [*run.results, *run.theirs()]
        rows = summarise(results, run.record.answers_depend_on["seed"])
        write_plots(results, rows, folder)
        notes = [_note(versions(environment, PACKAGES)), *same_answers(results)]
        (folder / "kvpress.md").write_text(report(rows, run.record, *notes))
    typer.echo(folder / "kvpress.md")


def _note(installed: dict[str, str]) -> str:
    listed = ", ".join(f"{name} {number}" for name, number in installed.items())
    return (
        f"Policies {PREFIX}..: {listed}, asked the same token ids in the same data type. Kept "
        "tokens are counted in its caches and masks. Kept KiB are its caches', in which adaptive "
        "presses leave what they mask."
    )


if __name__ == "__main__":
    typer.run(main)

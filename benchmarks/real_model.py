# SPDX-License-Identifier: Apache-2.0
"""What compression costs a real language model: our policies, and kvpress's presses beside them.

Run as `python -m benchmarks.real_model` in the checkout. RULER's tasks are asked in plain text, as
their model was not tuned for them, and questions about pages in chat format. What was asked is not
asked again: an interrupted run goes on where it stopped. Results go to
`benchmarks/results/real-model.md`, `.json` and `real-model/*.png`.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks.harness.report import command_line
from benchmarks.kvpress.environment import ROOT
from benchmarks.kvpress.results import Run
from headkv_vllm.errors import HeadKVError
from headkv_vllm.evaluation.cells import FULL
from headkv_vllm.evaluation.plots import draw_accuracy, save_figure
from headkv_vllm.evaluation.report import table
from headkv_vllm.evaluation.results import Result
from headkv_vllm.evaluation.summary import SummaryRow as Row
from headkv_vllm.evaluation.summary import summarise
from headkv_vllm.output.command_line import readable_errors

PARTS: Final = {
    "plain": (
        "ruler/niah_single_1,ruler/niah_single_2,ruler/niah_single_3,ruler/niah_multikey_1,"
        "ruler/niah_multivalue,ruler/vt",
        ["--max-tokens", "48"],
    ),
    "chat": ("town/qa", ["--chat"]),
}
"""Tasks, and further options of `headkv eval`, of each part."""
POLICIES: Final = "full,headkv,headkv_ada,adakv,pyramidkv,uniform,streaming,random"
SERVE_ARGUMENTS: Final = "--enforce-eager --max-num-seqs 32"
MEAN: Final = "all tasks and lengths"
EXPLAINED: Final = Path(__file__).with_name("real-model-preface.md")
SEED: Final = 0


def main(
    model: Annotated[
        str | None, typer.Option(help="A folder. Without it: what scripts/real-model prints.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Of prompts, in tokens.")] = "1024,2048",
    prompts: Annotated[int, typer.Option("-n", min=2, help="Of each task and length.")] = 50,
    policies: Annotated[str, typer.Option(help="As headkv eval takes them.")] = POLICIES,
    budgets: Annotated[str, typer.Option(help="Kept parts of a prompt.")] = "0.5,0.25,0.125,0.0625",
    settings: Annotated[str, typer.Option(help="Of headkv, as headkv eval takes them.")] = "{}",
    presses: Annotated[str | None, typer.Option(help="Of kvpress; 'none' leaves it out.")] = None,
    kvpress_prompts: Annotated[
        int | None, typer.Option(min=1, help="Of each task and length. Without it: all.")
    ] = None,
    work: Annotated[Path, typer.Option(help="For all answers.")] = ROOT / ".cache" / "real-model",
    out: Annotated[Path, typer.Option(help="For the page.")] = ROOT / "benchmarks" / "results",
) -> None:
    """Ask both sides, and write the page."""
    console = Console(stderr=True)
    with readable_errors():
        folder = model or _model()
        common = [
            *("--lengths", lengths, "-n", str(prompts), "--policies", policies),
            *("--budgets", budgets, "--settings", settings, "--dtype", "float32"),
            *("--concurrency", "32", "--serve-args", SERVE_ARGUMENTS),
        ]
        commands = []
        for name, (tasks, more) in PARTS.items():
            command = ["headkv", "eval", folder, "--tasks", tasks, *more, *common]
            commands.append([*command, "--out", str(work / name)])
            if presses != "none":
                beside = ["python", "-m", "benchmarks.kvpress", str(work / name)]
                beside += ["--presses", presses] if presses else []
                beside += ["--prompts", str(kvpress_prompts)] if kvpress_prompts else []
                commands.append(beside)
        for command in commands:
            console.print(f"$ {shlex.join(command)}", markup=False, highlight=False, soft_wrap=True)
            _run(command)
        write([Run.read(work / name) for name in PARTS], commands, out)
    typer.echo(out / "real-model.md")


def write(runs: Sequence[Run], commands: Sequence[Sequence[str]], out: Path) -> None:
    """The page, its numbers as JSON, and its pictures."""
    command = command_line("real_model")
    results = [result for run in runs for result in [*run.results, *run.theirs()]]
    parts = {MEAN: over_all(results), **_by_task(summarise(results, SEED))}
    pictures = out / "real-model"
    pictures.mkdir(parents=True, exist_ok=True)
    for title, rows in parts.items():
        save_figure(draw_accuracy(rows, title), pictures / picture(title))
    document = {
        "command": command,
        "commands": [shlex.join(one) for one in commands],
        "run": runs[0].record.model_dump(),
        "rows": [asdict(row) for rows in parts.values() for row in rows],
    }
    texts = {
        "json": json.dumps(document, indent=1) + "\n",
        "md": page(parts, runs, commands, command),
    }
    for kind, text in texts.items():
        # Commands are shown as one types them in the checkout.
        (out / f"real-model.{kind}").write_text(text.replace(f"{ROOT}/", ""))


def over_all(results: Iterable[Result]) -> list[Row]:
    """A row for each policy and budget over all prompts, as many of each task and length."""
    return summarise((r.model_copy(update={"task": MEAN, "length": 0}) for r in results), SEED)


def page(
    parts: Mapping[str, Sequence[Row]],
    runs: Sequence[Run],
    commands: Sequence[Sequence[str]],
    command: str,
) -> str:
    """All of it as Markdown."""
    record = runs[0].record
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    scores = "; ".join(f"{policy}: {source}" for policy, source in record.scores.items())
    lines = [
        "# A real language model under compression",
        f"Made by `{command}`, which runs\n\n```sh\n"
        + "\n".join(map(shlex.join, commands))
        + "\n```",
        f"On {record.machine['processor']}, {record.machine['processors']} processors; {versions}. "
        f"Head scores: {scores}.",
        EXPLAINED.read_text().strip(),
        "## Part of the whole cache's score, %",
        "\n".join(matrix(parts[MEAN])),
    ]
    for title, rows in parts.items():
        lines += [
            f"## {title}",
            f"`{command}`",
            f"![{title}](real-model/{picture(title)})",
            "\n".join(table(rows)),
        ]
    return "\n\n".join(lines) + "\n"


def matrix(rows: Sequence[Row]) -> list[str]:
    """Methods by kept parts: the mean score as a part of the whole cache's on the same prompts."""
    budgets = list(dict.fromkeys(row.cell.budget for row in rows if row.cell.budget is not None))
    found = {(row.cell.policy, row.cell.budget): of_full(row) for row in rows}
    policies = [
        policy for policy in dict.fromkeys(row.cell.policy for row in rows) if policy != FULL
    ]
    lines = [["kept", *(f"{budget:.4g}" for budget in budgets)], ["---:"] * (len(budgets) + 1)]
    for policy in policies:
        cells = (found.get((policy, budget)) for budget in budgets)
        lines.append([policy, *("-" if cell is None else f"{100 * cell:.1f}" for cell in cells)])
    return [f"| {' | '.join(line)} |" for line in lines]


def of_full(row: Row) -> float | None:
    """None where the whole cache was not asked, or is never right."""
    if row.against_full is None or row.score.mean == row.against_full.mean:
        return None
    return row.score.mean / (row.score.mean - row.against_full.mean)


def picture(title: str) -> str:
    """The file of a part's picture."""
    return title.replace("/", "-").replace(" ", "-").replace(",", "") + ".png"


def _by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(f"{row.cell.task}, {row.cell.length} tokens", []).append(row)
    return parts


def _run(command: Sequence[str]) -> None:
    """Raises HeadKVError where it fails; its own error is on the terminal by then."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    done = subprocess.run(command, env={**environment, **os.environ, "PATH": path}, cwd=ROOT)
    if done.returncode:
        raise HeadKVError(f"{command[0]} ended with {done.returncode}")


def _model() -> str:
    done = subprocess.run([ROOT / "scripts" / "real-model"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise HeadKVError("scripts/real-model failed: give --model a folder")
    return done.stdout.strip()


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""Gathers the bars of all results on one page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.report import RESULTS, Bar, table

NAMES: Final = (
    *("decode_step", "prefill", "overhead_off", "capacity", "throughput", "metadata"),
    *("scaling_batch", "scaling_prompt", "scaling_heads", "step_profile"),
)
"""The results that the page tells of, in its order."""


def main(
    out: Annotated[
        Path, typer.Option(help="The folder of the results, and of the page.")
    ] = RESULTS,
) -> None:
    """Write summary.md from the results that are there."""
    files = [out / f"{name}.json" for name in NAMES]
    results = [json.loads(file.read_text()) for file in files if file.is_file()]
    missing = [file.stem for file in files if not file.is_file()]
    (out / "summary.md").write_text(page(results, missing))


def page(results: list[dict[str, Any]], missing: Sequence[str] = ()) -> str:
    """results: what `Report.write` wrote. missing: benchmarks that left nothing."""
    links = [
        [f"[{found['question']}]({found['name']}.md)", f"`{found['command']}`"] for found in results
    ]
    lines = [
        [f"[{found['name']}]({found['name']}.md)", *Bar(**bar).cells]
        for found in results
        for bar in found["bars"]
    ]
    lines += [[name, "", "", "", "not measured"] for name in missing]
    machines = {_machine(found["machine"]) for found in results}
    return (
        "\n\n".join(
            [
                "# Performance in one page",
                "Every number is from the command beside its page; `scripts/bench` runs them all. "
                "Ratios are of pairs measured one right after the other on one machine.",
                *sorted(machines),
                table(("", "", "bound", "measured", ""), lines),
                table(("question", "command"), links),
            ]
        )
        + "\n"
    )


def _machine(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


if __name__ == "__main__":
    typer.run(main)

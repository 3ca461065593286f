# SPDX-License-Identifier: Apache-2.0
"""On a machine with a GPU: is everything right there, and how fast is it?

Four parts, each in a process of its own, which write JSON files into a folder: `checks` compares
kernels with their plain reference, `smoke` starts engines that answer, `kernels` measures ours
beside the ceilings and beside others, `engine` measures engines beside stock vLLM. One page shows
what is there. Without a GPU the checks run in Triton's interpreter, and nothing is measured.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.harness.machine import describe_machine
from benchmarks.harness.report import RESULTS, Bar, table

PARTS: Final = {
    "checks": ["benchmarks.gpu_check", "--checks"],
    "smoke": ["benchmarks.gpu_smoke", "--out"],
    "kernels": ["benchmarks.gpu_kernels", "--out"],
    "engine": ["benchmarks.gpu_engine", "--out"],
}
NEED_VLLM: Final = ("smoke", "kernels", "engine")
"""vLLM for this GPU must be installed."""


def run_checks(path: Path) -> int:
    """In a process of its own, because Triton reads once whether it interprets."""
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.harness.device_checks import checks

    found = checks(torch.device("cuda" if has_gpu else "cpu"))
    content = {"machine": describe_machine(), "checks": found}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(value <= limit for _, value, limit in found) else 1


def page(folder: Path, notes: list[str]) -> str:
    """What the parts have written into `folder`, for people."""
    found = {name: _read(folder / f"{name}.json") for name in PARTS}
    checks = found["checks"] or {"machine": {}, "checks": []}
    machine = ", ".join(f"{name} {value}" for name, value in checks["machine"].items())
    name = checks["machine"].get("gpu", "no GPU")
    parts = [f"# Are the kernels right and fast? ({name})", "```\nscripts/gpu-check\n```", machine]
    parts += notes
    bars = [Bar(what, value, limit, at_most=True) for what, value, limit in checks["checks"]]
    columns = ("", "bound", "measured", "")
    parts += ["## Differences to the plain reference", table(columns, [b.cells for b in bars])]
    if found["smoke"]:
        rows = [line.split(maxsplit=1) for line in found["smoke"]["table"]]
        parts += ["## Engines that answer", table(("", "engine and its answers"), rows)]
    for question, rows in (found["kernels"] or {}).items():
        if rows:
            columns = tuple(rows[0])
            parts += [
                f"## {question.capitalize()}",
                table(columns, [tuple(r.values()) for r in rows]),
            ]
    if found["engine"]:
        from benchmarks import gpu_engine

        measured = gpu_engine.from_json(found["engine"])
        bars = gpu_engine.bars(gpu_engine.Sizes(), measured)
        rows = gpu_engine.rows(measured)
        parts += [
            "## Engines beside stock vLLM",
            table(("", "bound", "", ""), [b.cells for b in bars]),
        ]
        parts += [table(tuple(rows[0]), [tuple(row.values()) for row in rows])]
    missing = [each for each in PARTS if not found[each]]
    if missing:
        parts.append(f"Not measured: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def has_vllm_for_the_gpu() -> bool:
    if not torch.cuda.is_available() or find_spec("vllm") is None:
        return False
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="scripts/gpu-check")
    parser.add_argument("--out", type=Path, help="folder of the numbers (benchmarks/results/gpu-*)")
    parser.add_argument("--only", default="", help=f"some of the parts: {', '.join(PARTS)}")
    parser.add_argument("--page", action="store_true", help="only write the page of what is there")
    parser.add_argument("--note", action="append", default=[], help="a paragraph of the page")
    parser.add_argument("--checks", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.checks:
        return run_checks(asked.checks)
    slug = (
        torch.cuda.get_device_name(0).lower().replace(" ", "-")
        if torch.cuda.is_available()
        else "none"
    )
    folder: Path = asked.out or RESULTS / f"gpu-{slug}"
    folder.mkdir(parents=True, exist_ok=True)
    status = 0
    for name, command in PARTS.items():
        if asked.page or name not in (asked.only or name).split(","):
            continue
        if name in NEED_VLLM and not has_vllm_for_the_gpu():
            print(f"{name}: needs a GPU and vLLM for it", flush=True)
            continue
        print(f"{name}:", flush=True)
        target = folder if name == "smoke" else folder / f"{name}.json"
        status |= subprocess.run(
            [sys.executable, "-W", "ignore", "-m", *command, target]
        ).returncode
        folder.with_suffix(".md").write_text(page(folder, asked.note))
    folder.with_suffix(".md").write_text(page(folder, asked.note))
    print(f"wrote {folder.with_suffix('.md')}")
    return status


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Asks kvpress, in a process of its own environment, what it was not asked yet."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.kvpress.results import Run
from headkv_vllm.config import Settings
from headkv_vllm.errors import EvaluationError
from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder
from headkv_vllm.output.files import complete_lines, drop_cut_line
from headkv_vllm.output.progress import JobProgress

SIDE: Final = Path(__file__).with_name("side.py")


def ask(
    run: Run,
    presses: Sequence[str],
    most: int | None,
    python: Path,
    threads: int,
    console: Console,
) -> None:
    """Add what is missing to `run.answers`. most: prompts of each task and length; all if None.

    Raises EvaluationError where kvpress fails; what it prints is in `kvpress.log`.
    """
    missing = request(run, presses, most)
    if not missing["prompts"]:
        return
    path, log_path = run.folder / "kvpress-request.json", run.folder / "kvpress.log"
    path.write_text(json.dumps(missing))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    with JobProgress(console, [1] * len(missing["prompts"])) as progress, log_path.open("w") as log:
        progress.say("kvpress")
        with subprocess.Popen(
            [str(python), str(SIDE), str(path)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout is not None
            try:
                for _ in process.stdout:
                    progress.advance()
            finally:
                process.terminate()
    if process.returncode:
        raise EvaluationError(f"kvpress ended with {process.returncode}; see {str(log_path)!r}")


def request(run: Run, presses: Sequence[str], most: int | None) -> dict[str, Any]:
    """What `side.py` reads. A prompt is in it until all presses have answered it."""
    lines = complete_lines(run.answers)
    drop_cut_line(run.answers, lines)
    known = {(one["digest"], one["press"], one["kept"]) for one in map(json.loads, lines)}
    depends_on = run.record.answers_depend_on
    settings = Settings.parse(depends_on["settings"])
    prompts, number = [], Counter[tuple[str, int]]()
    place = {result.sample: (result.task, result.length) for result in run.results}
    for digest, prompt in run.prompts.items():
        kept = sorted(set(run.kept.get(digest, {}).values()))
        number[place.get(digest, ("", 0))] += 1
        beyond = most is not None and number[place.get(digest, ("", 0))] > most
        missing = [p for p in presses if any((digest, p, k) not in known for k in kept)]
        if missing and not beyond:
            prompts.append(
                {
                    "digest": digest,
                    "ids": prompt.ids,
                    "max_tokens": prompt.sample.max_new_tokens,
                    "kept": kept,
                    "presses": missing,
                }
            )
    return {
        "model": str(find_checkpoint_folder(depends_on["model"])),
        "dtype": depends_on["dtype"],
        "window": settings.window,
        "kernel_size": settings.kernel_size,
        "chat": depends_on["chat"],
        "prompts": prompts,
        "answers": str(run.answers.resolve()),
    }

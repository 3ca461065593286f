# SPDX-License-Identifier: Apache-2.0
"""The page on a real model, of made-up results whose numbers are worked out by hand."""

import json
from pathlib import Path

from benchmarks.kvpress.results import Run
from benchmarks.real_model import PARTS, matrix, of_full, over_all, write
from headkv_vllm.evaluation.tasks import TASKS
from tests.benchmarks.made_up_runs import made_up_run

CELLS = {
    ("full", None): (256, 0.8),
    ("headkv", 0.5): (128, 0.6),
    ("headkv", 0.25): (64, 0.4),
    ("uniform", 0.5): (128, 0.2),
}


def runs(folder: Path) -> list[Run]:
    """Two tasks in one part and one in the other, on three prompts each."""
    parts = {"plain": ("needle/single", "needle/multi-key"), "chat": ("needle/multi-query",)}
    for name, tasks in parts.items():
        (folder / name).mkdir()
        made_up_run(folder / name, tasks, 3, 256, CELLS)
    return [Run.read(folder / name) for name in parts]


def test_all_tasks_count_alike_and_against_the_whole_cache(tmp_path: Path) -> None:
    rows = over_all(result for run in runs(tmp_path) for result in run.results)
    assert [row.n for row in rows] == [9] * 4
    header, _, headkv, uniform = matrix(rows)
    assert header == "| kept | 0.5 | 0.25 |"
    assert headkv == "| headkv | 75.0 | 50.0 |"  # 0.6 and 0.4 of 0.8
    assert uniform == "| uniform | 25.0 | - |"
    assert of_full(rows[0]) is None


def test_the_page_has_every_task_with_its_command_and_picture(tmp_path: Path) -> None:
    write(runs(tmp_path), [["headkv", "eval"], ["python", "-m", "x y"]], tmp_path / "out")
    page = (tmp_path / "out" / "real-model.md").read_text()
    assert "headkv eval\npython -m 'x y'\n" in page and "headkv: s." in page
    for title in ("all tasks and lengths", "needle/single, 256 tokens"):
        assert f"## {title}\n\n`python -m benchmarks.real_model" in page
    pictures = {path.name for path in (tmp_path / "out" / "real-model").iterdir()}
    assert pictures == {name for name in pictures if f"(real-model/{name})" in page}
    assert len(pictures) == 1 + 3
    document = json.loads((tmp_path / "out" / "real-model.json").read_text())
    assert len(document["rows"]) == 4 * (1 + 3)


def test_what_is_asked_are_tasks() -> None:
    assert all(task in TASKS for tasks, _ in PARTS.values() for task in tasks.split(","))

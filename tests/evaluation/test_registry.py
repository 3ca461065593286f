# SPDX-License-Identifier: Apache-2.0
"""All tasks by name."""

import subprocess
import sys

import pytest

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.tasks import TASKS, find_task

FAMILIES = {"ruler": 13, "longbench": 21, "longbench_v2": 1, "loogle": 3, "babilong": 20, "town": 1}


@pytest.mark.parametrize(("family", "num_tasks"), FAMILIES.items())
def test_families_are_complete(family: str, num_tasks: int) -> None:
    assert sum(name.startswith(f"{family}/") for name in TASKS) == num_tasks


def test_names_and_metrics_are_known() -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert task.metric in METRICS, name


def test_a_task_is_found_by_its_name() -> None:
    assert find_task("ruler/vt") is TASKS["ruler/vt"]


def test_an_unknown_name_brings_those_like_it() -> None:
    with pytest.raises(SettingsError, match="'longbench/qaspr', did you mean longbench/qasper"):
        find_task("longbench/qaspr")
    with pytest.raises(SettingsError, match=r"'\?\?\?', allowed are needle/"):
        find_task("???")


def test_tasks_load_without_torch_and_vllm() -> None:
    code = (
        "import sys, headkv_vllm.evaluation.tasks, headkv_vllm.evaluation.metrics;"
        "print(*({'torch', 'transformers', 'vllm', 'jieba'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

# SPDX-License-Identifier: Apache-2.0
"""The tasks of `headkv eval`, by name."""

from difflib import get_close_matches
from typing import Final

from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.evaluation.samples import Task
from headkv_vllm.evaluation.tasks.babilong import BABILONG_TASKS
from headkv_vllm.evaluation.tasks.longbench import LONGBENCH_TASKS
from headkv_vllm.evaluation.tasks.longbench_v2 import LONGBENCH_V2_TASKS
from headkv_vllm.evaluation.tasks.loogle import LOOGLE_TASKS
from headkv_vllm.evaluation.tasks.needle import NEEDLE_TASKS
from headkv_vllm.evaluation.tasks.ruler import RULER_TASKS
from headkv_vllm.evaluation.tasks.town.task import TownTask

_ALL: Final[tuple[Task, ...]] = (
    *NEEDLE_TASKS,
    *RULER_TASKS,
    *LONGBENCH_TASKS,
    *LONGBENCH_V2_TASKS,
    *LOOGLE_TASKS,
    *BABILONG_TASKS,
    TownTask(),
)
TASKS: Final[dict[str, Task]] = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """The task with this name. Raises SettingsError, which names similar tasks or all tasks."""
    if name in TASKS:
        return TASKS[name]
    near = get_close_matches(name, TASKS)
    if near:
        raise SettingsError(f"task is {shown(name)}, did you mean {' or '.join(near)}?")
    raise SettingsError(f"task is {shown(name)}, allowed are {', '.join(TASKS)}")

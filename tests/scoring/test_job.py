# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it measures."""

import io

from rich.console import Console

from headkv_vllm.scoring.job import _progress


def test_samples_that_take_minutes_have_a_remaining_time():
    progress = _progress(Console(file=io.StringIO()), num_samples=4)
    now = 0.0
    progress.get_time = lambda: now
    task = progress.add_task("samples", total=4000, done=0, right=0)
    for done in (1, 2):
        now = done * 300.0
        progress.update(task, advance=1000, done=done, right=0)
    assert progress.tasks[0].time_remaining == 600

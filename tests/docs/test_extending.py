# SPDX-License-Identifier: Apache-2.0
"""The code blocks of docs/extending.md run, one after the other."""

from pathlib import Path

import pytest

from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.cache.selection import POOLINGS, QUERY_REDUCTIONS
from headkv_vllm.engine.metrics.definitions import METRICS
from headkv_vllm.engine.metrics.scheduler_counts import COMPRESSED_PROMPT_COUNTS
from tests.docs.blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "extending.md"
TABLES = {
    "policies": POLICIES,
    "query reductions": QUERY_REDUCTIONS,
    "poolings": POOLINGS,
    "metrics": METRICS,
    "counts": COMPRESSED_PROMPT_COUNTS,
}
"""The tables to which the page adds an entry each."""


@pytest.fixture
def restored_tables():
    """The tables lose what a test has added when it ends."""
    before = {name: dict(table) for name, table in TABLES.items()}
    yield before
    for name, table in TABLES.items():
        table.clear()
        table.update(before[name])


def test_every_code_block_of_the_page_runs(restored_tables):
    blocks = blocks_of(PAGE)
    assert {block.language for block in blocks} == {"python"}
    names = {}
    for block in blocks:
        exec(compile(block.code, block.name, "exec"), names)
    for name, table in TABLES.items():
        assert len(table) == len(restored_tables[name]) + 1, name


def test_a_task_changes_two_files():
    """Each block that changes the package begins with the file's path."""
    first_lines = [block.code.partition("\n")[0] for block in blocks_of(PAGE)]
    files = {line.removeprefix("# ") for line in first_lines if line.startswith("# headkv_vllm/")}
    assert files == {
        "headkv_vllm/budgets/policies.py",
        "headkv_vllm/cache/selection.py",
        "headkv_vllm/config.py",
        "headkv_vllm/engine/metrics/definitions.py",
        "headkv_vllm/engine/metrics/scheduler_counts.py",
    }
    assert all((ROOT / Path(file)).is_file() for file in files)

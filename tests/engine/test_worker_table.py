# SPDX-License-Identifier: Apache-2.0
"""What a worker counts reaches another process through a file that is gone at once."""

import os
import subprocess
import sys
import tempfile

import pytest
from headkv_vllm.engine.compaction_clock import CompactionClock
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.engine.worker_table import CAPACITY, NUM_BYTES, WorkerTable, table_path
from tests.engine.bookkeeping_engine import engine_config, write_model

COUNT_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from headkv_vllm.engine.worker_table import WorkerTable

table = WorkerTable.create(Path(sys.argv[1]))
print("made", flush=True)
sys.stdin.readline()
table.write_plan_cache(7, 2, 1)
table.add_compaction(0.25)
print("counted", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table"


def test_a_reader_sees_what_another_process_writes(path):
    command = [sys.executable, "-c", COUNT_IN_ANOTHER_PROCESS, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, bufsize=1) as worker:
        assert worker.stdout.readline() == "made\n"
        assert path.stat().st_mode & 0o777 == 0o600
        table = WorkerTable.open(path)
        assert not path.exists()
        assert (table.plan_cache_hits, table.num_compactions) == (0, 0)
        print("count", file=worker.stdin)
        assert worker.stdout.readline() == "counted\n"
        print("end", file=worker.stdin)
    assert worker.returncode == 0
    assert (table.plan_cache_hits, table.plan_cache_misses, table.plan_cache_size) == (7, 2, 1)
    assert table.compactions(0, table.num_compactions) == [250_000]


def test_a_reader_cannot_write(path):
    WorkerTable.create(path)
    with pytest.raises(TypeError):
        WorkerTable.open(path).add_compaction(1.0)


def test_nothing_is_read_where_no_worker_has_written(path):
    assert WorkerTable.open(path) is None


def make_too_short(path):
    path.write_bytes(b"\0" * (NUM_BYTES - 8))
    path.chmod(0o600)


def make_garbled(path):
    path.write_bytes(os.urandom(NUM_BYTES))
    path.chmod(0o600)


def make_open_to_others(path):
    WorkerTable.create(path)
    path.chmod(0o644)


def make_link(path):
    WorkerTable.create(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "make",
    [make_too_short, make_garbled, make_open_to_others, make_link, os.mkdir, os.mkfifo],
)
def test_anything_but_a_workers_file_is_not_read(path, make):
    make(path)
    assert WorkerTable.open(path) is None


def test_a_file_that_is_there_already_is_left_alone(path):
    path.write_text("another's")
    with pytest.raises(FileExistsError):
        WorkerTable.create(path)
    assert path.read_text() == "another's"


def test_each_engine_has_a_path_of_its_own(tmp_path):
    config = engine_config(write_model(tmp_path), {"budget": 64})
    first = table_path(config)
    assert first == table_path(config) and first.parent.samefile(tempfile.gettempdir())
    config.parallel_config.data_parallel_index = 1
    second = table_path(config)
    other = table_path(engine_config(tmp_path, {"budget": 64}))
    assert len({first, second, other}) == 3


def test_the_configuration_is_the_same_at_each_start(tmp_path):
    """vLLM keeps what it has compiled by this hash."""
    configs = [engine_config(write_model(tmp_path), {"budget": 64}) for _ in range(2)]
    assert len({table_path(config) for config in configs}) == 2
    assert len({config.compute_hash() for config in configs}) == 1


@given(st.lists(st.lists(st.integers(0, 10**7), max_size=CAPACITY), max_size=4))
def test_each_time_is_read_once_however_often_the_memory_has_been_reused(batches):
    table, start = WorkerTable.private(), 0
    for batch in batches:
        for microseconds in batch:
            table.add_compaction(microseconds / 1e6)
        assert table.compactions(start, table.num_compactions) == batch
        start = table.num_compactions


def test_of_more_than_fit_the_last_are_left():
    table = WorkerTable.private()
    for index in range(CAPACITY + 5):
        table.add_compaction(index / 1e6)
    assert table.compactions(0, CAPACITY + 5) == list(range(5, CAPACITY + 5))


def test_a_prompts_time_is_entered_with_its_last_layer():
    table = WorkerTable.private()
    clock = CompactionClock(num_prompts=2, num_layers=3, table=table)
    for layer in range(3):
        for prompt in range(2):
            assert table.num_compactions == (prompt if layer == 2 else 0)
            with clock.measuring(prompt):
                sum(range(20_000 * (prompt + 1)))
    assert table.num_compactions == 2
    shorter, longer = table.compactions(0, 2)
    assert 0 < shorter < longer

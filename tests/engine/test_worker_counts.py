# SPDX-License-Identifier: Apache-2.0
"""What a worker counts reaches another process through a file that is gone at once."""

import os
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.engine.metrics.worker_counts import CAPACITY, NUM_BYTES, WorkerCounts, table_path
from tests.engine.helpers.bookkeeping_engine import engine_config, write_model

COUNT_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from headkv_vllm.engine.metrics.worker_counts import WorkerCounts

table = WorkerCounts.create(Path(sys.argv[1]))
print("made", flush=True)
sys.stdin.readline()
table.write_allocation_cache(7, 2, 1)
table.add_compression(0.25)
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
        table = WorkerCounts.open(path)
        assert not path.exists()
        assert (table.allocation_cache_hits, table.num_compressions) == (0, 0)
        print("count", file=worker.stdin)
        assert worker.stdout.readline() == "counted\n"
        print("end", file=worker.stdin)
    assert worker.returncode == 0
    assert (
        table.allocation_cache_hits,
        table.allocation_cache_misses,
        table.allocation_cache_size,
    ) == (7, 2, 1)
    assert table.compressions(0, table.num_compressions) == [250_000]


def test_a_reader_cannot_write(path):
    WorkerCounts.create(path)
    with pytest.raises(TypeError):
        WorkerCounts.open(path).add_compression(1.0)


def test_nothing_is_read_where_no_worker_has_written(path):
    assert WorkerCounts.open(path) is None


def make_too_short(path):
    path.write_bytes(b"\0" * (NUM_BYTES - 8))
    path.chmod(0o600)


def make_garbled(path):
    path.write_bytes(os.urandom(NUM_BYTES))
    path.chmod(0o600)


def make_open_to_others(path):
    WorkerCounts.create(path)
    path.chmod(0o644)


def make_link(path):
    WorkerCounts.create(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "make",
    [make_too_short, make_garbled, make_open_to_others, make_link, os.mkdir, os.mkfifo],
)
def test_anything_but_a_workers_file_is_not_read(path, make):
    make(path)
    assert WorkerCounts.open(path) is None


def test_a_file_that_is_there_already_is_left_alone(path):
    path.write_text("another's")
    with pytest.raises(FileExistsError):
        WorkerCounts.create(path)
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
    table, start = WorkerCounts.private(), 0
    for batch in batches:
        for microseconds in batch:
            table.add_compression(microseconds / 1e6)
        assert table.compressions(start, table.num_compressions) == batch
        start = table.num_compressions


def test_of_more_than_fit_the_last_are_left():
    table = WorkerCounts.private()
    for index in range(CAPACITY + 5):
        table.add_compression(index / 1e6)
    assert table.compressions(0, CAPACITY + 5) == list(range(5, CAPACITY + 5))

# SPDX-License-Identifier: Apache-2.0
"""Numbers that an engine's first worker counts, in memory that the scheduler can read.

vLLM has no free channel from worker to scheduler, so they share a few kilobytes of memory. The
worker makes a file; the scheduler maps it and removes its name at once. Numbers that a worker
writes before it returns a step's results are visible when the scheduler reads these results.
"""

import mmap
import os
import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import Self

from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank

from headkv_vllm.engine.logger import logger

MAGIC = int.from_bytes(b"headkv 1")
CAPACITY = 1024
"""The number of compression times that are kept. The scheduler reads them after each step, and a
step completes fewer prompts."""

_MAGIC, _HITS, _MISSES, _SIZE, _NUM_COMPRESSIONS, _FIRST_TIME = range(6)
NUM_BYTES = 8 * (_FIRST_TIME + CAPACITY)


def table_path(vllm_config: VllmConfig) -> Path:
    """The path of the file that the worker and the scheduler of one engine share.

    The name has vLLM's instance id. A random name in `additional_config` would change the
    configuration, and vLLM would compile the model again at each start.
    """
    rank = vllm_config.parallel_config.data_parallel_index
    return Path(tempfile.gettempdir()) / f"headkv-{vllm_config.instance_id}-{rank}"


def worker_counts(vllm_config: VllmConfig) -> "WorkerCounts":
    """The table that this worker writes. The scheduler reads only that of the first worker."""
    is_first = get_pp_group().is_first_rank and get_tensor_model_parallel_rank() == 0
    return _own_counts(table_path(vllm_config) if is_first else None)


@cache
def _own_counts(path: Path | None) -> "WorkerCounts":
    # The result is cached, because a worker can build its attention twice: to profile and to serve.
    try:
        return WorkerCounts.create(path) if path else WorkerCounts.private()
    except OSError as error:
        logger.info("HeadKV: no metrics from this worker: %s", error)
        return WorkerCounts.private()


class WorkerCounts:
    """Signed 64-bit numbers in shared memory. One process writes them, another one reads them.

    Numbers are written one by one. All but the allocation cache's size only grow, so a reader in
    between gets the rest at its next read. Times are in microseconds.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._numbers = memoryview(memory).cast("q")

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the file at `path`, readable by this user only. Raises OSError if it exists."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(file, NUM_BYTES)
            table = cls(mmap.mmap(file, NUM_BYTES))
        finally:
            os.close(file)
        table._numbers[_MAGIC] = MAGIC
        return table

    @classmethod
    def private(cls) -> Self:
        """A table that no other process can read."""
        return cls(mmap.mmap(-1, NUM_BYTES))

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Read the table that a worker of this user made at `path`, and remove the name.

        None if there is no file, or if the file is not such a table.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if not _is_ours(os.fstat(file)):
                return None
            path.unlink(missing_ok=True)
            table = cls(mmap.mmap(file, NUM_BYTES, access=mmap.ACCESS_READ))
        finally:
            os.close(file)
        return table if table._numbers[_MAGIC] == MAGIC else None

    def write_allocation_cache(self, hits: int, misses: int, size: int) -> None:
        """hits, misses: since the worker started."""
        self._numbers[_HITS], self._numbers[_MISSES], self._numbers[_SIZE] = hits, misses, size

    def add_compression(self, seconds: float) -> None:
        """Count one more compressed prompt."""
        done = self._numbers[_NUM_COMPRESSIONS]
        self._numbers[_FIRST_TIME + done % CAPACITY] = round(seconds * 1e6)
        self._numbers[_NUM_COMPRESSIONS] = done + 1

    @property
    def allocation_cache_hits(self) -> int:
        return self._numbers[_HITS]

    @property
    def allocation_cache_misses(self) -> int:
        return self._numbers[_MISSES]

    @property
    def allocation_cache_size(self) -> int:
        return self._numbers[_SIZE]

    @property
    def num_compressions(self) -> int:
        return self._numbers[_NUM_COMPRESSIONS]

    def compressions(self, start: int, end: int) -> list[int]:
        """The times of compressions `start` to `end`, in microseconds: the last CAPACITY."""
        kept = range(max(start, end - CAPACITY), end)
        return [self._numbers[_FIRST_TIME + index % CAPACITY] for index in kept]


def _is_ours(status: os.stat_result) -> bool:
    is_private = stat.S_ISREG(status.st_mode) and status.st_mode & 0o077 == 0
    return is_private and status.st_uid == os.geteuid() and status.st_size == NUM_BYTES

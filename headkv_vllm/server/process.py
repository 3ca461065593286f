# SPDX-License-Identifier: Apache-2.0
"""Starts, waits for and stops a `vllm serve` process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from headkv_vllm.errors import HeadKVError

HOST = "127.0.0.1"
STOP_TIMEOUT = 60.0


class ServerError(HeadKVError):
    """The server did not start or did not become healthy in time."""


class ServerProcess:
    """Runs `vllm serve MODEL ...` on a free local port. Its output goes to `log_path`.

    A context manager: the server starts with the block and always stops at its end.
    """

    command: Sequence[str] = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")

    def __init__(
        self,
        arguments: Sequence[str],
        log_path: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = _free_port()
        self.log_path = log_path
        self._arguments = [*self.command, *arguments, "--host", HOST, "--port", str(self.port)]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._started.pid

    def log(self) -> str:
        """The output of the server so far."""
        return self.log_path.read_text(errors="replace")

    def wait_until_healthy(
        self, timeout: float, waiting: Callable[[float], None] = lambda elapsed: None
    ) -> None:
        """Return when `/health` answers. `waiting` is called with the elapsed seconds.

        Raises ServerError, with the end of the log, when the server ends or time runs out.
        """
        start = time.monotonic()
        while not self._is_healthy():
            elapsed = time.monotonic() - start
            if not self.is_running():
                raise ServerError(self._with_log(f"exit code {self._started.returncode}"))
            if elapsed > timeout:
                raise ServerError(self._with_log(f"no answer within {timeout:.0f} s"))
            waiting(elapsed)
            time.sleep(0.25)

    def stop(self) -> int:
        """End the server, by force after STOP_TIMEOUT seconds. Returns its exit code."""
        self._started.terminate()
        try:
            return self._started.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            return self._started.wait()

    def is_running(self) -> bool:
        """Whether the server's first process is alive."""
        return self._started.poll() is None

    def has_processes(self) -> bool:
        """Whether any process of the server is alive."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> Self:
        try:
            with _signals_wait(), self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    self._arguments,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
        except BaseException:
            if self._process is not None:
                self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _started(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "the server starts with the block"
        return self._process

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _with_log(self, reason: str) -> str:
        last_lines = self.log().strip().splitlines()[-5:]
        return f"the server did not start ({reason}); its log ends with: " + " | ".join(last_lines)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM act after the block: a server half started would be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port

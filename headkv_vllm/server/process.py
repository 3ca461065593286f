# SPDX-License-Identifier: Apache-2.0
"""A `vllm serve` that this program starts, waits for and stops."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
    """Runs `vllm serve MODEL ...` on a free local port; what it prints goes to `log_path`.

    Use it as a context manager: the server is stopped at the end, whatever happens.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log_path: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = _free_port()
        self.log_path = log_path
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--host", HOST, "--port", str(self.port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """What the server has printed so far."""
        return self.log_path.read_text(errors="replace")

    def wait_until_healthy(
        self, timeout: float, waiting: Callable[[float], None] = lambda elapsed: None
    ) -> None:
        """Return when `/health` answers; `waiting` is told the seconds gone by now and then.

        Raises ServerError, with the end of the log, when the server ends or time runs out.
        """
        start = time.monotonic()
        while not self._is_healthy():
            elapsed = time.monotonic() - start
            if self._process.poll() is not None:
                raise ServerError(self._with_log(f"exit code {self._process.returncode}"))
            if elapsed > timeout:
                raise ServerError(self._with_log(f"no answer within {timeout:.0f} s"))
            waiting(elapsed)
            time.sleep(0.25)

    def stop(self) -> int:
        """End the server, by force if it does not listen; returns its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            return self._process.wait()

    def is_running(self) -> bool:
        """Whether the server's first process is alive."""
        return self._process.poll() is None

    def has_processes(self) -> bool:
        """Whether the server's first process, or any that it has started, is alive."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _with_log(self, reason: str) -> str:
        last_lines = self.log().strip().splitlines()[-5:]
        return f"the server did not start ({reason}); its log ends with: " + " | ".join(last_lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port

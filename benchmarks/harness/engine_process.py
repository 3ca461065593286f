# SPDX-License-Identifier: Apache-2.0
"""A real vLLM engine in its own process, which runs functions for tests and benchmarks.

The engine core runs in that process too, so that these functions can read the scheduler and its
pool. The first argument of each function is the `LLM`. Each function must be importable.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

START_TIMEOUT = 600
CALL_TIMEOUT = 280
Environment = Mapping[str, str | None]


class EngineProcess:
    """An engine with the arguments of `vllm.LLM`, and calls of functions inside it.

    Several engines can start at once: only the first call, or `wait_until_ready`, waits for one.
    environment: variables of its process; None deletes one. starts_at_once: if false, the process
    imports vLLM and starts its engine at the first call.
    """

    def __init__(
        self,
        environment: Environment | None = None,
        starts_at_once: bool = True,
        **arguments: Any,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        inside = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **(environment or {})}
        self._process = context.Process(target=_serve, args=(theirs, inside, arguments))
        self._process.start()
        self._is_ready = self._is_starting = False
        theirs.close()
        if starts_at_once:
            self._start()

    def _start(self) -> None:
        if not self._is_starting:
            self._connection.send((_nothing, (), {}))
            self._is_starting = True

    def wait_until_ready(self) -> None:
        """Raises RuntimeError with the engine's traceback if the engine cannot start."""
        if self._is_ready:
            return
        self._start()
        try:
            self._receive(START_TIMEOUT)
        except Exception:
            self.stop()
            raise
        self._is_ready = True

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """`function(llm, *arguments, **named)`, run inside the engine's process."""
        self.wait_until_ready()
        self._connection.send((function, arguments, named))
        return self._receive(CALL_TIMEOUT)

    def stop(self) -> None:
        """End the process and wait for it."""
        if self._process.is_alive():
            self._connection.send(None)
            self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
        self._connection.close()

    def _receive(self, timeout: float) -> Any:
        if not self._connection.poll(timeout):
            raise TimeoutError(f"the engine did not answer within {timeout} s")
        failure, result = self._connection.recv()
        if failure is not None:
            raise RuntimeError(f"inside the engine's process:\n{failure}")
        return result


def _serve(connection: Connection, environment: Environment, arguments: dict[str, Any]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    from vllm import LLM

    llm = None
    while (request := _next_request(connection)) is not None:
        function, positional, named = request
        try:
            llm = llm or LLM(**arguments)
            answer = (None, function(llm, *positional, **named))
        except Exception:
            answer = (traceback.format_exc(), None)
        connection.send(answer)


def _next_request(connection: Connection) -> Any:
    """The next request; None if the engine should end or the other process has ended."""
    try:
        return connection.recv()
    except EOFError:
        return None


def _nothing(llm: Any) -> None:
    """The first call: it starts the engine."""

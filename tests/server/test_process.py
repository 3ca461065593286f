# SPDX-License-Identifier: Apache-2.0
"""Programs that are started as servers are, and what becomes of them."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headkv_vllm.output.command_line import ends_on_sigterm
from headkv_vllm.server.process import ServerProcess


class Sleeper(ServerProcess):
    """Takes a server's arguments, and never answers."""

    command = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so would this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_while_it_starts_leaves_nothing_behind(
    number: signal.Signals,
    ending: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []

    class SignalledStart(subprocess.Popen):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", SignalledStart)
    with ends_on_sigterm(), pytest.raises(ending), Sleeper([], tmp_path / "log"):
        pytest.fail("the block began")
    (process,) = started
    assert process.returncode == -signal.SIGTERM


def test_it_ends_with_its_block(tmp_path: Path) -> None:
    with Sleeper([], tmp_path / "log") as running:
        assert running.is_running()
    assert not running.is_running()
    assert not running.has_processes()

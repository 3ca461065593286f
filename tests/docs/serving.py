# SPDX-License-Identifier: Apache-2.0
"""The server that the user guide starts, on a port of the test's own."""

import os
import sys
from pathlib import Path

from headkv_vllm.server.process import ServerProcess
from tests.docs.blocks import Block

ADDRESS = "http://localhost:8000"
"""What stands for the server's address on the pages."""


def environment() -> dict[str, str]:
    """A shell's in which `headkv` and `python` are those of this test."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PATH": path, **small}


class GuideServer(ServerProcess):
    """Runs the block that starts the server, in `folder`."""

    def __init__(self, block: Block, folder: Path, environment: dict[str, str]) -> None:
        # In the shell's place, so that the server is told when to end.
        start = block.code.rstrip().replace("headkv serve", "exec headkv serve", 1)
        self.command = ("bash", "-c", f'cd "{folder}"\n{start} "$@"', "bash")
        super().__init__([], folder / "server.log", environment)

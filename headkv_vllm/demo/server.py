# SPDX-License-Identifier: Apache-2.0
"""The demonstration's server, and the KV blocks of each request, which its log shows."""

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console

from headkv_vllm.errors import HeadKVError
from headkv_vllm.server.process import ServerProcess

NAME: Final = "demo"
"""The model's name in requests."""
BLOCK_SIZE: Final = 16
START_TIMEOUT: Final = 240.0
HELD: Final = re.compile(
    r"HeadKV: request (\S+) compressed .*it held (\d+) blocks, and now holds (\d+)"
)
ENVIRONMENT: Final = {
    "VLLM_LOGGING_LEVEL": "DEBUG",  # the level of the lines with each request's blocks
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


class HeadKVServer(ServerProcess):
    """Runs `headkv serve`."""

    command = (sys.executable, "-c", "from headkv_vllm.cli.main import app; app()", "serve")


@contextmanager
def served(arguments: Sequence[str], console: Console) -> Iterator[ServerProcess]:
    """Starts `headkv serve` with `arguments`, and stops it at the end of the block.

    Raises ServerError when it does not start.
    """
    arguments = [*arguments, "--served-model-name", NAME]
    console.print("Starting: headkv serve", *arguments, soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="headkv-demo-") as folder:
        log_path = Path(folder) / "server.log"
        with HeadKVServer(arguments, log_path, ENVIRONMENT) as server:
            with console.status("waiting for the server") as status:
                server.wait_until_healthy(
                    START_TIMEOUT,
                    lambda elapsed: status.update(f"waiting for the server: {elapsed:.0f} s"),
                )
            console.print(f"The server answers on {server.url}.", highlight=False)
            yield server


def blocks_held(server: ServerProcess, completion_id: str) -> tuple[int, int]:
    """KV blocks of a request before and after its prompt was compressed.

    Raises HeadKVError when the log does not have them.
    """
    for request_id, before, after in HELD.findall(server.log()):
        if request_id.startswith(completion_id):
            return int(before), int(after)
    raise HeadKVError(f"the server's log does not say that request {completion_id} was compressed")

# SPDX-License-Identifier: Apache-2.0
"""The demonstration: questions to a real server that keeps a small part of each prompt."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI
from rich.console import Console
from rich.table import Table

from headkv_vllm.errors import HeadKVError
from headkv_vllm.needle.paths import checkpoint_path
from headkv_vllm.needle.tasks import Sample, Task, generate_samples
from headkv_vllm.resources import configs_dir
from headkv_vllm.server.process import ServerProcess

QUESTIONS: tuple[tuple[Task, int], ...] = (
    ("multi-key", 1024),
    ("multi-query", 1024),
    ("two-hop", 1024),
    ("multi-key", 2048),
    ("multi-query", 2048),
)
SEED = 11
MAX_TOKENS = 48
START_TIMEOUT = 150.0
BLOCK_SIZE = 16
KEPT_RATIO = 0.125
"""Each request asks for this part of its prompt to be kept."""
HELD = re.compile(r"HeadKV: request (\S+) compressed .*it held (\d+) blocks, and now holds (\d+)")


@dataclass(frozen=True)
class Exchange:
    """A question, what the server said, and the KV blocks that the request held.

    held_before, held_after: around the compression of its prompt, from the server's log.
    stock: the blocks that its prompt alone holds in stock vLLM.
    """

    sample: Sample
    answer: str
    held_before: int
    held_after: int
    stock: int

    @property
    def is_right(self) -> bool:
        return self.answer.strip() == self.sample.answer.strip()


def run(console: Console) -> bool:
    """Start the server, ask, show what came of it. Returns whether all answers were right.

    Raises ServerError when the server does not start.
    """
    model = str(checkpoint_path())
    arguments = [model, "--served-model-name", "needle"]
    arguments += ["--config", str(configs_dir() / "needle.yaml")]
    console.print("Starting [bold]vllm serve[/bold]", *arguments, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="headkv-demo-") as folder:
        log_path = Path(folder) / "server.log"
        with ServerProcess(arguments, log_path, _environment()) as server:
            _wait(server, console)
            exchanges = list(_ask_all(server))
    console.print(_table(exchanges))
    num_right = sum(exchange.is_right for exchange in exchanges)
    console.print(f"{num_right} of {len(exchanges)} answers are right.")
    return num_right == len(exchanges)


def _environment() -> dict[str, str]:
    # The log says at this level what each request held, before and after.
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return {"VLLM_LOGGING_LEVEL": "DEBUG", **quiet}


def _wait(server: ServerProcess, console: Console) -> None:
    with console.status("waiting for the server") as status:
        server.wait_until_healthy(
            START_TIMEOUT,
            lambda elapsed: status.update(f"waiting for {server.url}/health: {elapsed:.0f} s"),
        )
    console.print(f"The server answers on {server.url}.")


def _ask_all(server: ServerProcess) -> Iterator[Exchange]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for task, tokens in QUESTIONS:
            (sample,) = generate_samples(task, tokens, 1, SEED)
            yield _ask(client, server, sample)


def _ask(client: OpenAI, server: ServerProcess, sample: Sample) -> Exchange:
    completion = client.completions.create(
        model="needle",
        prompt=sample.prompt,
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_body={"vllm_xargs": {"headkv_ratio": KEPT_RATIO}},
    )
    before, after = _blocks_held(server.log(), completion.id)
    stock = -(-sample.num_tokens // BLOCK_SIZE)
    return Exchange(sample, completion.choices[0].text, before, after, stock)


def _blocks_held(log: str, completion_id: str) -> tuple[int, int]:
    for request_id, before, after in HELD.findall(log):
        if request_id.startswith(completion_id):
            return int(before), int(after)
    raise HeadKVError(f"the server's log does not say that request {completion_id} was compressed")


def _table(exchanges: list[Exchange]) -> Table:
    table = Table(title="Questions about a long prompt, answered from an eighth of its KV cache")
    columns = ("task", "prompt tokens", "question", "expected answer", "given answer", "right")
    for column in columns:
        table.add_column(column, overflow="fold")
    blocks = ("before", "after", "stock vLLM")
    for column in blocks:
        table.add_column(f"KV blocks held\n{column}", justify="right")
    for exchange in exchanges:
        table.add_row(*_cells(exchange))
    return table


def _cells(exchange: Exchange) -> tuple[str, ...]:
    sample = exchange.sample
    return (
        sample.task,
        str(sample.num_tokens),
        "? " + sample.prompt.rsplit("? ", 1)[1],
        sample.answer,
        exchange.answer.strip(),
        "[green]yes[/green]" if exchange.is_right else "[red]no[/red]",
        str(exchange.held_before),
        str(exchange.held_after),
        str(exchange.stock),
    )

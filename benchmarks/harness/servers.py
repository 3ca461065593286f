# SPDX-License-Identifier: Apache-2.0
"""Real servers, and vLLM's own client benchmark that drives them."""

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.shapes import checkpoint
from benchmarks.harness.sides import BLOCK_SIZE, ENVIRONMENT, SideName, arguments_of
from headkv_vllm.server.process import ServerProcess

START_TIMEOUT: Final = 240.0
MODEL: Final = "model"
SAVED: Final = {
    "output_tokens_rate": "output_throughput",
    "requests_rate": "request_throughput",
    "ttft_p50": "p50_ttft_ms",
    "ttft_p99": "p99_ttft_ms",
    "itl_p50": "p50_itl_ms",
    "itl_p99": "p99_itl_ms",
    "duration": "duration",
}
"""Fields of `Outcome`, with their names in `vllm bench serve`."""


@dataclass(frozen=True)
class Load:
    """The requests of the clients. Lengths are in tokens and include the prompt's first token.

    clients: maximum requests at once. rate: arriving requests per second; None sends all at once.
    shared: whether prompts have the same start and differ in their last tokens only.
    seed: seed of the prompts. Each run needs another seed, because of the prefix cache.
    """

    num_prompts: int
    prompt_tokens: int
    max_tokens: int
    clients: int
    seed: int
    rate: float | None = None
    shared: bool = False

    @property
    def num_tokens(self) -> int:
        """Of one request, at its end."""
        return self.prompt_tokens + self.max_tokens

    def pool_blocks(self, num_requests: int) -> int:
        """The blocks of a pool that holds so many of the requests in stock vLLM.

        vLLM never hands out the first block.
        """
        return num_requests * self.num_tokens // BLOCK_SIZE + 1


@dataclass(frozen=True)
class Outcome:
    """The clients' measurements and the server's preemptions. Rates per second, times in ms."""

    output_tokens_rate: float
    requests_rate: float
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    duration: float
    num_preemptions: int

    @property
    def cells(self) -> dict[str, float | int]:
        """The values by their column in a table."""
        return {
            "output tok/s": self.output_tokens_rate,
            "req/s": self.requests_rate,
            "TTFT p50 ms": self.ttft_p50,
            "TTFT p99 ms": self.ttft_p99,
            "ITL p50 ms": self.itl_p50,
            "ITL p99 ms": self.itl_p99,
            "preemptions": self.num_preemptions,
            "seconds": self.duration,
        }


@dataclass(frozen=True)
class Server:
    """A side that runs. folder: of its checkpoint."""

    url: str
    folder: Path

    def run(self, load: Load, arguments: Mapping[str, Any] | None = None) -> Outcome:
        """Send `load` and wait for all answers. arguments: `vllm_xargs` of all requests.

        Raises RuntimeError when a request fails.
        """
        before = self.num_preemptions()
        result = _benchmark(_client_arguments(self, load, arguments))
        if result["completed"] != load.num_prompts:
            raise RuntimeError(
                f"{result['completed']} of {load.num_prompts} requests were answered"
            )
        return outcome(result, self.num_preemptions() - before)

    def num_preemptions(self) -> int:
        """Preemptions since the server's start."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return count(text, "vllm:num_preemptions_total")


def outcome(result: dict[str, Any], num_preemptions: int) -> Outcome:
    """result: as `vllm bench serve` saves it."""
    saved = {field: float(result[name]) for field, name in SAVED.items()}
    return Outcome(num_preemptions=num_preemptions, **saved)


def count(metrics: str, name: str) -> int:
    """The sum of the samples `name` in the text of `/metrics`. Raises ValueError without any."""
    families = text_string_to_metric_families(metrics)
    values = [one.value for family in families for one in family.samples if one.name == name]
    if not values:
        raise ValueError(f"the server's metrics have no {name}")
    return round(sum(values))


@contextmanager
def servers(
    names: tuple[SideName, ...], shape: str, max_model_len: int, *arguments: str
) -> Iterator[dict[SideName, Server]]:
    """Start `vllm serve` for each side, on random weights of `shape` in bfloat16, and end them.

    arguments: more arguments for all servers. Idle servers do not slow down a busy one.
    """
    folder = checkpoint(shape, torch.bfloat16)
    environment = {**ENVIRONMENT, **os.environ}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory()))
        started = {}
        for name in names:
            command = _serve_arguments(name, folder, max_model_len)
            process = ServerProcess([*command, *arguments], logs / name, environment)
            started[name] = stack.enter_context(process)
        for process in started.values():
            process.wait_until_healthy(START_TIMEOUT)
        yield {name: Server(process.url, folder) for name, process in started.items()}


def _serve_arguments(name: SideName, folder: Path, max_model_len: int) -> list[str]:
    arguments = [str(folder), "--served-model-name", MODEL, "--dtype", "bfloat16"]
    arguments += ["--block-size", str(BLOCK_SIZE), "--enforce-eager"]
    arguments += ["--max-model-len", str(max_model_len), "--disable-uvicorn-access-log"]
    for key, value in arguments_of(name, folder).items():
        text = value if isinstance(value, str) else json.dumps(value)
        arguments += [f"--{key.replace('_', '-')}", text]
    return arguments


def _client_arguments(server: Server, load: Load, arguments: Mapping[str, Any] | None) -> list[str]:
    # Only this data set of vLLM has random tokens. "random" uses the vocabulary in order, and in
    # our small vocabulary prompts would share prefixes.
    suffix = min(BLOCK_SIZE, load.prompt_tokens // 2)
    named = {
        "base-url": server.url,
        "model": MODEL,
        "tokenizer": server.folder,
        "dataset-name": "prefix_repetition",
        "prefix-repetition-prefix-len": load.prompt_tokens - 1 - suffix,
        "prefix-repetition-suffix-len": suffix,
        "prefix-repetition-num-prefixes": 1 if load.shared else load.num_prompts,
        "prefix-repetition-output-len": load.max_tokens,
        "num-prompts": load.num_prompts,
        "max-concurrency": load.clients,
        "request-rate": load.rate or "inf",
        "seed": load.seed,
        "temperature": 0,
        "percentile-metrics": "ttft,itl",
        "metric-percentiles": "50,99",
    }
    if arguments is not None:
        named["extra-body"] = json.dumps({"vllm_xargs": dict(arguments)})
    flags = ["--ignore-eos", "--disable-tqdm"]
    return flags + [part for key, value in named.items() for part in (f"--{key}", str(value))]


def _benchmark(arguments: list[str]) -> dict[str, Any]:
    """Run `vllm bench serve` in this process, because its start takes long for small loads."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with redirect_stdout(io.StringIO()):
        result: dict[str, Any] = main(parser.parse_args(arguments))
    return result

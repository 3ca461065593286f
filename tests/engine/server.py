# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` with what a test reads off it: answers, log and metrics."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
import pytest
from openai import APITimeoutError, OpenAI
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from headkv_vllm.server.process import ServerProcess

START_TIMEOUT = 480
VLLM = str(Path(sys.executable).with_name("vllm"))


class Server(ServerProcess):
    """A server whose name for the model is `model`; healthy inside its `with`."""

    model = "needle"

    def __init__(self, checkpoint: Path, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        name = ["--served-model-name", self.model]
        log_path = Path(self._folder.name) / "server.log"
        environment = {"VLLM_LOGGING_LEVEL": "INFO"}
        super().__init__([str(checkpoint), *name, *arguments], log_path, environment)

    def __enter__(self) -> Self:
        try:
            self.wait_until_healthy(START_TIMEOUT)
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=120, max_retries=0)

    @contextmanager
    def abandoned_request(self, prompt: str, max_tokens: int) -> Iterator[None]:
        """A request that is running inside the `with`, and whose client has gone after it.

        It does not stream: so small a model floods the server with pieces, and what the metrics
        say would come too late.
        """
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                self.client.completions.create,
                model=self.model,
                prompt=prompt,
                temperature=0,
                max_tokens=max_tokens,
                extra_body={"ignore_eos": True},
                timeout=2,
            )
            yield
            with pytest.raises(APITimeoutError):
                asked.result()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples, as /metrics has them now."""
        return sum(sample.value for sample in self._samples() if sample.name == name)

    def num_held_blocks(self) -> int:
        """Blocks in use, by vLLM's own gauge, which is a share of all."""
        (info,) = (s for s in self._samples() if s.name == "vllm:cache_config_info")
        num_blocks = int(info.labels["num_gpu_blocks"]) - 1
        return round(self.metric("vllm:kv_cache_usage_perc") * num_blocks)

    def _samples(self) -> list[Sample]:
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        families = text_string_to_metric_families(text)
        return [sample for family in families for sample in family.samples]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Return as soon as `condition` holds; fails when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.05)

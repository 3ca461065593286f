# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` with what a test reads off it: answers, log and metrics."""

import sys
import tempfile
import time
from collections.abc import Callable
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
    log_level = "INFO"

    def __init__(self, checkpoint: Path, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        name = ["--served-model-name", self.model]
        log_path = Path(self._folder.name) / "server.log"
        environment = {"VLLM_LOGGING_LEVEL": self.log_level}
        super().__init__([str(checkpoint), *name, *arguments], log_path, environment)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.wait_until_healthy(START_TIMEOUT)
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=120, max_retries=0)

    def abandon(self, prompt: str, max_tokens: int) -> None:
        """Ask for `max_tokens` tokens, and go away long before they are there."""
        with pytest.raises(APITimeoutError):
            self.client.completions.create(
                model=self.model,
                prompt=prompt,
                temperature=0,
                max_tokens=max_tokens,
                extra_body={"ignore_eos": True},
                timeout=2,
            )

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, as /metrics has them now."""
        samples = [sample for sample in self.samples() if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def num_held_blocks(self) -> int:
        """Blocks in use, by vLLM's own gauge, which is a share of all."""
        (info,) = (s for s in self.samples() if s.name == "vllm:cache_config_info")
        num_blocks = int(info.labels["num_gpu_blocks"]) - 1
        return round(self.metric("vllm:kv_cache_usage_perc") * num_blocks)

    def samples(self) -> list[Sample]:
        """All that /metrics says at one moment."""
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        families = text_string_to_metric_families(text)
        return [sample for family in families for sample in family.samples]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Return as soon as `condition` holds; fails when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.05)

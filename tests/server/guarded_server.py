# SPDX-License-Identifier: Apache-2.0
"""`headkv serve` on the needle model, with an API key."""

import sys
from pathlib import Path

import httpx
from openai import OpenAI

from headkv_vllm.config import Settings
from headkv_vllm.needle import checkpoint_path
from tests.engine.helpers.server import Server

KEY = "open-sesame"
SETTINGS = Settings(budget=128)
BLOCK_SIZE = 16
MAX_MODEL_LEN = 4608
ARGUMENTS = f"--dtype float32 --enforce-eager --block-size {BLOCK_SIZE} --seed 0".split()
ARGUMENTS += ["--max-model-len", str(MAX_MODEL_LEN), "--api-key", KEY]
ARGUMENTS += ["--additional-config", '{"headkv": {"budget": 128}}']


class GuardedServer(Server):
    """Its data routes answer only those who have `KEY`."""

    command = (str(Path(sys.executable).with_name("headkv")), "serve")
    api = "/v1/headkv"

    def __init__(self) -> None:
        super().__init__(checkpoint_path(), *ARGUMENTS)

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, timeout=120, max_retries=0)

    @property
    def http(self) -> httpx.Client:
        """Asks with the key."""
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def get(self, route: str) -> dict:
        """What one of our routes answers to those who have the key."""
        with self.http as http:
            return http.get(f"{self.api}/{route}").raise_for_status().json()

    def plan(self, body: object) -> httpx.Response:
        """The answer to POST plan."""
        with self.http as http:
            return http.post(f"{self.api}/plan", json=body)

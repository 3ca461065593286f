# SPDX-License-Identifier: Apache-2.0
"""The served model, as vLLM's API server knows it."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import vllm
from prometheus_client import CollectorRegistry
from vllm.config import VllmConfig
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMValidationError
from vllm.v1.metrics.prometheus import get_prometheus_registry

from headkv_vllm.engine.configured_model import ConfiguredModel, configured_model
from headkv_vllm.engine.platforms.platform import is_selected
from headkv_vllm.errors import SettingsError


@dataclass(frozen=True)
class ServedModel(ConfiguredModel):
    """A model that is served with our backend.

    names: the model names that requests may use.
    num_blocks: vLLM blocks of all engines behind this server; None if not known.
    """

    names: tuple[str, ...]
    vllm_version: str
    num_blocks: int | None
    renderer: Any

    async def count_tokens(self, text: str) -> int:
        """The length of `text` as a prompt of /v1/completions, special tokens included.

        Raises SettingsError when it is more than `max_model_len` tokens.
        """
        prompt: Any = {"prompt": text}
        try:
            tokens = await self.renderer.tokenize_prompt_async(
                prompt, self.renderer.default_cmpl_tok_params
            )
        except VLLMValidationError as error:
            raise SettingsError(f"text cannot be a prompt: {error.args[0]}") from None
        return len(tokens["prompt_token_ids"])


def served_model(engine_client: EngineClient, arguments: Namespace) -> ServedModel | None:
    """The model of `engine_client`; None if it has another backend.

    arguments: the arguments of `vllm serve`.
    """
    vllm_config: VllmConfig = engine_client.vllm_config
    if not is_selected(vllm_config):
        return None
    return ServedModel(
        **vars(configured_model(vllm_config)),
        names=tuple(arguments.served_model_name or [arguments.model]),
        vllm_version=vllm.__version__,
        num_blocks=vllm_config.cache_config.num_gpu_blocks,
        renderer=engine_client.renderer,
    )


def metrics_registry() -> CollectorRegistry:
    """The registry of /metrics, with the metrics of all API servers."""
    return get_prometheus_registry()

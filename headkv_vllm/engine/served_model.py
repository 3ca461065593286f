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

from headkv_vllm.config import Settings
from headkv_vllm.engine.platforms.platform import is_selected
from headkv_vllm.engine.settings import model_dtype, read_settings, served_scores
from headkv_vllm.errors import SettingsError
from headkv_vllm.head_scores.scores import ServedScores


@dataclass(frozen=True)
class ServedModel:
    """A model that is served with our backend.

    names: the model names that requests may use. bytes_per_element: of keys and values.
    num_blocks: vLLM blocks of all engines behind this server; None if not known.
    group_size: query heads per KV head.
    """

    names: tuple[str, ...]
    vllm_version: str
    settings: Settings
    scores: ServedScores
    head_size: int
    group_size: int
    bytes_per_element: int
    block_size: int
    num_blocks: int | None
    max_model_len: int
    tensor_parallel_size: int
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
    model_config, cache_config = vllm_config.model_config, vllm_config.cache_config
    num_heads = model_config.model_arch_config.total_num_attention_heads
    return ServedModel(
        names=tuple(arguments.served_model_name or [arguments.model]),
        vllm_version=vllm.__version__,
        settings=read_settings(vllm_config),
        scores=served_scores(vllm_config),
        head_size=model_config.get_head_size(),
        group_size=num_heads // model_config.get_total_num_kv_heads(),
        bytes_per_element=model_dtype(vllm_config).itemsize,
        block_size=cache_config.block_size,
        num_blocks=cache_config.num_gpu_blocks,
        max_model_len=model_config.max_model_len,
        tensor_parallel_size=vllm_config.parallel_config.tensor_parallel_size,
        renderer=engine_client.renderer,
    )


def metrics_registry() -> CollectorRegistry:
    """The registry of /metrics, with the metrics of all API servers."""
    return get_prometheus_registry()

# SPDX-License-Identifier: Apache-2.0
"""A model as vLLM is configured for it with our backend, and what its requests would keep."""

from dataclasses import dataclass

import numpy as np
from vllm.config import VllmConfig

from headkv_vllm.budgets.plan import Plan, make_plan
from headkv_vllm.config import Settings
from headkv_vllm.engine.settings import model_dtype, read_settings, served_scores
from headkv_vllm.head_scores.scores import ServedScores


@dataclass(frozen=True)
class ConfiguredModel:
    """The settings, the scores and the sizes that decide what a request keeps.

    group_size: query heads per KV head. bytes_per_element: of keys and values.
    """

    settings: Settings
    scores: ServedScores
    head_size: int
    group_size: int
    bytes_per_element: int
    block_size: int
    max_model_len: int
    tensor_parallel_size: int

    def plan(self, settings: Settings, num_prompt_tokens: int) -> Plan:
        """What every KV head keeps of a prompt with `settings`. Raises SettingsError."""
        return make_plan(
            np.array(self.scores.values),
            settings,
            num_prompt_tokens,
            self.block_size,
            self.head_size,
            self.bytes_per_element,
            self.tensor_parallel_size,
            self.group_size,
        )


def configured_model(vllm_config: VllmConfig) -> ConfiguredModel:
    """The model of a configuration that our platform has prepared."""
    model_config = vllm_config.model_config
    num_heads = model_config.model_arch_config.total_num_attention_heads
    return ConfiguredModel(
        settings=read_settings(vllm_config),
        scores=served_scores(vllm_config),
        head_size=model_config.get_head_size(),
        group_size=num_heads // model_config.get_total_num_kv_heads(),
        bytes_per_element=model_dtype(vllm_config).itemsize,
        block_size=vllm_config.cache_config.block_size,
        max_model_len=model_config.max_model_len,
        tensor_parallel_size=vllm_config.parallel_config.tensor_parallel_size,
    )

# SPDX-License-Identifier: Apache-2.0
"""Random models of several families, in memory, and prompts for them."""

from copy import deepcopy

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from headkv_vllm.scoring.prompts import PromptTokens

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=16),
    "llama-mha": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4),
    "qwen2": Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SIZES, num_attention_heads=8, num_key_value_heads=2, head_dim=16),
    "mistral": MistralConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=None
    ),
    "phi3": Phi3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "gemma": GemmaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=1, head_dim=16),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def full_layers(config):
    """The indices of the layers without a sliding window."""
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [index for index, name in enumerate(types) if name == "full_attention"]


def random_model(name, implementation, seed=0, std=0.6):
    """By default weights so large that heads prefer few positions, and answers vary."""
    torch.manual_seed(seed)
    config = deepcopy(CONFIGS[name])  # a config holds the attention of the last model made of it
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return model.eval().requires_grad_(False)


def random_prompt(seed, num_tokens=40, num_answer_tokens=6):
    rng = np.random.default_rng(seed)
    start = int(rng.integers(1, num_tokens - 15))
    return PromptTokens(
        ids=tuple(rng.integers(3, VOCABULARY, num_tokens).tolist()),
        evidence=(*range(start, start + 5), *range(start + 8, start + 12)),
        answer_ids=tuple(rng.integers(3, VOCABULARY, num_answer_tokens).tolist()),
    )

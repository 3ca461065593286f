# SPDX-License-Identifier: Apache-2.0
"""The `config.json` of published models, as their owners publish it: what vLLM decides by."""

from typing import Any, NamedTuple

Config = dict[str, Any]


class Published(NamedTuple):
    """A model on the hub. file: the one in configs/ that a reader would serve it with."""

    file: str
    config: Config


LLAMA_3: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
LLAMA_3_1: Config = {
    **LLAMA_3,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
MISTRAL_V0_3: Config = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32768,
    "torch_dtype": "bfloat16",
}
MISTRAL_V0_2: Config = {**MISTRAL_V0_3, "vocab_size": 32000}
MISTRAL_V0_1: Config = {**MISTRAL_V0_2, "rope_theta": 10000.0, "sliding_window": 4096}
PHI_4: Config = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "sliding_window": None,
    "vocab_size": 100352,
    "torch_dtype": "bfloat16",
}
PHI_3_MINI: Config = {
    **PHI_4,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "vocab_size": 32064,
}


def qwen2_5(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, windowed_layers: int
) -> Published:
    """Qwen2.5 Instruct of one size. Its sliding window is written down, and switched off."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32768,
        "max_window_layers": windowed_layers,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072 if hidden > 2048 else 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": hidden <= 2048,
        "vocab_size": 152064 if hidden > 2048 else 151936,
        "torch_dtype": "bfloat16",
    }
    return Published("qwen2.5-instruct.yaml", config)


def qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool = False) -> Published:
    """Qwen3 of one size: eight KV heads of 128, whatever the hidden size is."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 128,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
    }
    return Published("qwen3.yaml", config)


SERVED: dict[str, Published] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": Published("llama-3-8b-instruct.yaml", LLAMA_3),
    "meta-llama/Llama-3.1-8B-Instruct": Published("llama-3.1-8b-instruct.yaml", LLAMA_3_1),
    "mistralai/Mistral-7B-Instruct-v0.3": Published("mistral-7b-instruct-v0.3.yaml", MISTRAL_V0_3),
    "mistralai/Mistral-7B-Instruct-v0.2": Published("mistral-7b-instruct-v0.3.yaml", MISTRAL_V0_2),
    "Qwen/Qwen2.5-0.5B-Instruct": qwen2_5(896, 4864, 24, 14, 2, 21),
    "Qwen/Qwen2.5-1.5B-Instruct": qwen2_5(1536, 8960, 28, 12, 2, 21),
    "Qwen/Qwen2.5-3B-Instruct": qwen2_5(2048, 11008, 36, 16, 2, 70),
    "Qwen/Qwen2.5-7B-Instruct": qwen2_5(3584, 18944, 28, 28, 4, 28),
    "Qwen/Qwen2.5-14B-Instruct": qwen2_5(5120, 13824, 48, 40, 8, 70),
    "Qwen/Qwen2.5-32B-Instruct": qwen2_5(5120, 27648, 64, 40, 8, 70),
    "Qwen/Qwen3-0.6B": qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen3-1.7B": qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen3-4B": qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen/Qwen3-8B": qwen3(4096, 12288, 36, 32),
    "Qwen/Qwen3-14B": qwen3(5120, 17408, 40, 40),
    "Qwen/Qwen3-32B": qwen3(5120, 25600, 64, 64),
    "microsoft/phi-4": Published("phi-4.yaml", PHI_4),
}
"""By name on the hub: all that configs/ has a file for."""

REFUSED: dict[str, Published] = {
    "mistralai/Mistral-7B-Instruct-v0.1": Published("mistral-7b-instruct-v0.3.yaml", MISTRAL_V0_1),
    "microsoft/Phi-3-mini-4k-instruct": Published("phi-4.yaml", PHI_3_MINI),
}
"""Models that a reader may take for served ones. Their windows slide."""

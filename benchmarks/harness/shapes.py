# SPDX-License-Identifier: Apache-2.0
"""Models with random weights. Speed and memory do not depend on the values of weights."""

import shutil
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from headkv_vllm.needle import checkpoint_path

CHECKPOINTS: Final = Path(__file__).parents[1] / ".models"
MAX_MODEL_LEN: Final = 131072
SEED: Final = 0


def llama(num_layers: int, hidden_size: int, num_heads: int, num_kv_heads: int) -> LlamaConfig:
    """A Llama with head size 64 and the vocabulary of the needle model."""
    return LlamaConfig(
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=64,
        intermediate_size=2 * hidden_size,
        vocab_size=448,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )


SHAPES: Final[dict[str, PreTrainedConfig]] = {
    "2-layer": llama(2, 256, 4, 2),
    "8-layer": llama(8, 512, 8, 4),
    "32-layer": llama(32, 512, 8, 8),
    "qwen3-0.6b": Qwen3Config(
        num_hidden_layers=28,
        hidden_size=1024,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "qwen3-4b": Qwen3Config(
        num_hidden_layers=36,
        hidden_size=2560,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=9728,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"],
    ),
}
"""By name: tiny, small and wide Llamas, and the shapes of Qwen3-0.6B and Qwen3-4B."""


def checkpoint(shape: str, dtype: torch.dtype = torch.float32) -> Path:
    """The folder of a checkpoint of `shape`. It is made if it does not exist."""
    folder = CHECKPOINTS / f"{shape}-{str(dtype).removeprefix('torch.')}"
    if not (folder / "tokenizer.json").is_file():
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype)
        model.save_pretrained(folder)
        for name in ("tokenizer_config.json", "tokenizer.json"):
            shutil.copy(checkpoint_path() / name, folder / name)
    return folder


def config_folder(shape: str) -> Path:
    """The folder of a model of `shape` for vLLM's random weights (`load_format="dummy"`).

    The identity of a checkpoint needs names of weights, so there is one weight that is not loaded.
    """
    folder = CHECKPOINTS / f"{shape}-config"
    if not (folder / "model.safetensors").is_file():
        SHAPES[shape].save_pretrained(folder)
        save_file({"nothing": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")
    return folder

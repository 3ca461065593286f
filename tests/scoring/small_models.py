# SPDX-License-Identifier: Apache-2.0
"""Random models of a few thousand weights, saved as a hub's checkpoint is."""

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

BOS, EOS = "<s>", "</s>"
VOCAB_SIZE: Final = 258
"""One token per byte, and the two above."""
TINY: Final[dict[str, Any]] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
FAMILIES: Final[dict[str, PreTrainedConfig]] = {
    "llama": LlamaConfig(**TINY),
    "qwen3": Qwen3Config(**TINY, head_dim=16),
    "mistral": MistralConfig(**TINY, sliding_window=None),
    "phi3": Phi3Config(**TINY),
    "gemma": GemmaConfig(**TINY, head_dim=16),
}


def small_checkpoint(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype = torch.float32
) -> Path:
    """Saves a random causal language model of `config` and a tokenizer into `folder`."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte of UTF-8, BOS in front."""
    alphabet = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()), 2)}
    tokenizer = Tokenizer(BPE({BOS: 0, EOS: 1, **alphabet}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)

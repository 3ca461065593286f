# SPDX-License-Identifier: Apache-2.0
"""Small models of random weights, in which most layers have a sliding window."""

from pathlib import Path
from typing import Any, Final

import torch
import transformers

WINDOW: Final = 96
"""In tokens; no multiple of a block size times a power of two."""
SIZES: Final = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "sliding_window": WINDOW,
}
KINDS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    # One group of two layers with full attention, and five such groups of the others.
    "Gemma 3": ("Gemma3Text", {"num_hidden_layers": 12, "query_pre_attn_scalar": 32}),
    # As many layers of both kinds; logits are capped.
    "Gemma 2": (
        "Gemma2",
        {"num_hidden_layers": 4, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0},
    ),
    # Attention sinks, and experts.
    "gpt-oss": (
        "GptOss",
        {"num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    # Layers with full attention have no rotary positions.
    "Cohere 2": ("Cohere2", {"num_hidden_layers": 8, "sliding_window_pattern": 4}),
    "Olmo 3": ("Olmo3", {"num_hidden_layers": 8}),
}


def write_sliding_model(folder: Path, kind: str) -> Path:
    """A checkpoint of one of `KINDS` in `folder`, which is returned."""
    prefix, changes = KINDS[kind]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **changes})
    name = {"Gemma3Text": "Gemma3ForCausalLM"}.get(prefix, f"{prefix}ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, name)(config)
    for weight in model.parameters():
        # Attention of new models is almost even. These look at some tokens more than at others.
        weight.data.normal_(0.0, 0.2 if weight.dim() > 1 else 0.1)
    model.save_pretrained(folder)
    return folder

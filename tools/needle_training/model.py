# SPDX-License-Identifier: Apache-2.0
"""The needle model's shape and its first weights, with the previous-token prior."""

import math

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from headkv_vllm.needle.vocabulary import BOS, EOS, PAD, TOKEN_IDS, WORDS
from tools.needle_training.attention import ATTENTION

PRIOR_SHARE = 0.7
"""Share of an embedding's norm that lies along the direction common to all words."""
PRIOR_LOGIT = 30.0
"""Attention logit of the prior at its peak; one position off it is about 5 lower."""
PRIOR_FREQUENCIES = 3
"""The prior uses the fastest rotary pairs only: slower ones hardly tell neighbours apart."""


def needle_config() -> LlamaConfig:
    """A Llama of 0.85 M parameters: 4 layers, 8 query and 4 KV heads of size 32."""
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000_000.0},
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=TOKEN_IDS[BOS],
        eos_token_id=TOKEN_IDS[EOS],
        pad_token_id=TOKEN_IDS[PAD],
        dtype="float32",
    )


def initial_model(seed: int) -> LlamaForCausalLM:
    """Random weights from `seed`, plus the prior without which retrieval hardly emerges."""
    torch.manual_seed(seed)
    config = needle_config()
    config._attn_implementation = ATTENTION
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    add_previous_token_prior(model)
    return model


@torch.no_grad()
def add_previous_token_prior(model: LlamaForCausalLM) -> None:
    """Make query heads 0 and 1 of layer 0 look one and two tokens back, in place.

    All embeddings get a common mean direction. Along it, the key projection of KV head 0 gives
    every token the same key, and the two query projections give that key turned back by the
    rotary angle of one or two positions, so the logit peaks exactly there.
    """
    config, layer = model.config, model.model.layers[0].self_attn
    head_dim, half = config.head_dim, config.head_dim // 2
    embedding = model.model.embed_tokens.weight
    direction = torch.nn.functional.normalize(torch.randn(config.hidden_size), dim=0)
    norm = embedding.norm(dim=1).mean()
    embedding += direction * norm * PRIOR_SHARE / math.sqrt(1 - PRIOR_SHARE**2)
    # RMSNorm gives every embedding the norm sqrt(hidden_size).
    reader = direction / (PRIOR_SHARE * math.sqrt(config.hidden_size))

    amplitude = math.sqrt(PRIOR_LOGIT * math.sqrt(head_dim) / PRIOR_FREQUENCIES)
    used = (torch.arange(half) < PRIOR_FREQUENCIES).float() * amplitude
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    layer.k_proj.weight[:half] += used[:, None] * reader
    for head, back in ((0, 1), (1, 2)):
        query = torch.cat([used * torch.cos(back * angles), -used * torch.sin(back * angles)])
        layer.q_proj.weight[head * head_dim : (head + 1) * head_dim] += query[:, None] * reader

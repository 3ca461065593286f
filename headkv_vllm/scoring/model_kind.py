# SPDX-License-Identifier: Apache-2.0
"""Checks by a model's config whether its heads can be scored, before its weights are loaded."""

from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from headkv_vllm.errors import UnsupportedError, shown
from headkv_vllm.head_scores.layer_types import FULL, SLIDING, layer_types
from headkv_vllm.scoring.attention_rows import ATTENTION

NEEDED: Final = "head scores need a softmax over all earlier tokens"


def check_kind(config: Any) -> None:
    """Raise UnsupportedError for a model whose attention has no head scores.

    config: a transformers config. The message names the kind of model or layer. `measure` checks
    the attention itself for properties that a config does not show.
    """
    model_class = _language_model_class(config)
    text = config.get_text_config()
    _check_layer_types(text)
    if not model_class.is_backend_compatible():
        raise UnsupportedError(
            f"{model_class.__name__} does not use transformers' attention interface; {NEEDED}"
        )
    _check_attention(text)
    _check_window(text)
    _check_modules(config, text.num_hidden_layers)


def _language_model_class(config: Any) -> Any:
    """The model class of the checkpoint, if it is the language model of its model_type."""
    saved_from = config.architectures[0] if config.architectures else None
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if known is None or config.is_encoder_decoder:
        raise UnsupportedError(
            f"{shown(saved_from)} (model_type {shown(config.model_type)}) is not a decoder-only "
            "language model; only these have head scores"
        )
    if saved_from != known.__name__:
        raise UnsupportedError(
            f"config.json: architectures names {shown(saved_from)}, but the language model of "
            f"model_type {shown(config.model_type)} is {known.__name__!r}"
        )
    return known


def _check_layer_types(text: Any) -> None:
    others = sorted(set(getattr(text, "layer_types", None) or ()) - {FULL, SLIDING})
    if others:
        raise UnsupportedError(f"the model has layers of type {shown(others[0])}; {NEEDED}")


def _check_attention(text: Any) -> None:
    softcap = getattr(text, "attn_logit_softcapping", None)
    if softcap is not None:
        raise UnsupportedError(
            f"the model caps its attention logits (attn_logit_softcapping {shown(softcap)}), which "
            "is not supported"
        )
    rank = getattr(text, "kv_lora_rank", None)
    if rank is not None:
        raise UnsupportedError(
            f"the model has multi-head latent attention (kv_lora_rank {shown(rank)}): its cache "
            "has no heads that could have a budget"
        )


def _check_window(text: Any) -> None:
    types = layer_types(text.to_dict(), text.num_hidden_layers)
    if types and FULL not in types:
        raise UnsupportedError(
            f"all layers of the model attend a sliding window of {shown(text.sliding_window)} of "
            f"{shown(text.max_position_embeddings)} positions; {NEEDED}"
        )


def _check_modules(config: Any, num_layers: int) -> None:
    with torch.device("meta"):  # the modules without their weights
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    name = type(model).__name__
    modules = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "is_causal")]
    num_found = len({module.layer_idx for module in modules})
    if num_found != num_layers:
        raise UnsupportedError(
            f"{name} has attention in {num_found} of its {num_layers} layers; {NEEDED}"
        )
    if not all(module.is_causal for module in modules):
        raise UnsupportedError(f"{name} also attends later tokens, as an encoder does; {NEEDED}")
    if any("sink" in weight.rpartition(".")[2] for weight, _ in model.named_parameters()):
        raise UnsupportedError(f"{name} has attention sinks, which are not supported")

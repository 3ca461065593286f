# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model have full attention. Only these have scores and are compressed."""

from collections.abc import Mapping
from typing import Any, Final

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"


def layer_types(text: Mapping[str, Any], num_layers: int) -> list[str]:
    """The type of each layer, by transformers' names; empty if all layers have full attention.

    text: the config of a language model, as config.json has it or as transformers reads it.
    num_layers: of the model, whatever its config calls them.
    """
    types, window = text.get("layer_types"), text.get("sliding_window")
    if types is None and window is not None:
        # config.json may leave the types out. transformers then derives them.
        known = _as_transformers_reads(text)
        types = getattr(known, "layer_types", None)
        window = getattr(known, "sliding_window", window)
    if types is not None:
        return list(types)[:num_layers]
    positions = text.get("max_position_embeddings")
    is_full = window is None or (isinstance(positions, int) and window >= positions)
    return [] if is_full else [SLIDING] * num_layers


def full_attention_layers(text: Mapping[str, Any], num_layers: int) -> list[int]:
    """The indices of the layers with full attention, in order. See `layer_types`."""
    types = layer_types(text, num_layers)
    if not types:
        return list(range(num_layers))
    return [index for index, layer_type in enumerate(types) if layer_type == FULL]


def _as_transformers_reads(text: Mapping[str, Any]) -> object:
    from transformers import CONFIG_MAPPING

    model_type = text.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(text)).get_text_config()
    except Exception:
        # Any class: each model's config checks its own values. Without it the window decides.
        return None

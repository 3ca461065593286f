# SPDX-License-Identifier: Apache-2.0
"""The identity of a model, which says whether a set of head scores belongs to it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open

from headkv_vllm.errors import ScoreFileError, shown
from headkv_vllm.head_scores.layer_types import full_attention_layers

WeightShapes = Mapping[str, tuple[int, ...]]


class ModelIdentity(BaseModel):
    """A model's architecture and sizes, and a fingerprint of them and of its weights' shapes.

    num_layers: the layers with full attention. Other layers have no scores.

    The fingerprint does not cover the weights' values: a fine-tuned model has the identity of
    its base model, and shares its scores. A quantised copy has another fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    architecture: str = Field(min_length=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")

    def differences(self, other: Self) -> list[str]:
        """The names of the fields that differ in `other`, without the fingerprint.

        If there are none, each model can be served with the other's scores. Only the user knows
        whether the scores suit the model.
        """
        names = [name for name in type(self).model_fields if name != "fingerprint"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def identify_checkpoint(folder: Path) -> ModelIdentity:
    """The identity of the Hugging Face checkpoint in `folder`. Reads headers only, no weights.

    Raises ScoreFileError when config.json or the safetensors headers are missing or unusable.
    """
    return identify(_read_json(folder / "config.json"), read_weight_shapes(folder))


def identify(config: Mapping[str, Any], weight_shapes: WeightShapes) -> ModelIdentity:
    """The identity of a model with a Hugging Face `config` and weights of `weight_shapes`.

    If there is a `text_config`, the sizes of the language model come from it.
    Raises ScoreFileError when the config lacks a size, or when sizes contradict each other.
    """
    text = {**config, **(config.get("text_config") or {})}
    num_layers = _size(text, "num_hidden_layers")
    full = full_attention_layers(text, num_layers)
    if not full:
        raise ScoreFileError(f"config.json: none of the {num_layers} layers has full attention")
    num_heads = _size(text, "num_attention_heads")
    num_kv_heads = _size(text, "num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise ScoreFileError(
            f"config.json: num_attention_heads {num_heads} must be a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    sizes = {
        "num_layers": len(full),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_size": _head_size(text, num_heads),
    }
    architecture = _architecture(config)
    digest = fingerprint(architecture, tuple(sizes.values()), weight_shapes)
    return ModelIdentity(architecture=architecture, fingerprint=digest, **sizes)


def fingerprint(architecture: str, sizes: tuple[int, ...], weight_shapes: WeightShapes) -> str:
    """SHA-256, as hex, of the architecture's name, its sizes and the weights' names and shapes."""
    weights = sorted((name, list(shape)) for name, shape in weight_shapes.items())
    text = json.dumps([architecture, list(sizes), weights], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight in `folder`, from the safetensors headers alone.

    Reads model.safetensors, or the shards that model.safetensors.index.json names.
    Raises ScoreFileError when there is neither, or when one cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _safetensors_files(folder):
        try:
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a dict)
                    shapes[name] = tuple(weights.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ScoreFileError(f"{path} is not a readable safetensors file: {error}") from None
    return shapes


def _safetensors_files(folder: Path) -> list[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ScoreFileError(f"{index} has no weight_map that names the shards")
        return [folder / name for name in sorted(set(map(str, weight_map.values())))]
    if single.is_file():
        return [single]
    raise ScoreFileError(
        f"{folder} has no safetensors weights: expected model.safetensors or "
        "model.safetensors.index.json"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not valid JSON"
        raise ScoreFileError(f"{path} cannot be read: {reason}") from None
    if not isinstance(data, dict):
        raise ScoreFileError(f"{path} must contain a JSON object, not {shown(data)}")
    return data


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str) and names[0]:
        return names[0]
    raise ScoreFileError(
        f"config.json: architectures is {shown(names)}, expected a list with the model's class name"
    )


def _head_size(config: Mapping[str, Any], num_heads: int) -> int:
    if config.get("head_dim") is not None:
        return _size(config, "head_dim")
    hidden_size = _size(config, "hidden_size")
    if hidden_size % num_heads:
        raise ScoreFileError(
            f"config.json: hidden_size {hidden_size} must be a multiple of num_attention_heads "
            f"{num_heads}, or head_dim must be given"
        )
    return hidden_size // num_heads


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise ScoreFileError(
            f"config.json: {key} is {shown(value)}, expected an integer of at least 1"
        )
    return value

# SPDX-License-Identifier: Apache-2.0
"""The plugin's settings in a VllmConfig: reads them, and adds the head scores at start-up."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from vllm.config import ModelConfig, VllmConfig

from headkv_vllm.arrays import FloatArray
from headkv_vllm.budgets.request import num_query_blocks
from headkv_vllm.config import Settings
from headkv_vllm.engine.logger import logger
from headkv_vllm.errors import ScoreFileError, SettingsError, shown
from headkv_vllm.head_scores.identity import ModelIdentity, identify, identify_checkpoint
from headkv_vllm.head_scores.layer_types import full_attention_layers
from headkv_vllm.head_scores.scores import (
    HeadScores,
    ServedScores,
    needs_file,
    none_bundled_for,
    resolve,
    uniform_scores,
)

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
SETTINGS_KEY = "headkv"
SCORES_KEY = "headkv_scores"
"""The key of the resolved scores, so that every process uses the same scores."""


def read_settings(vllm_config: VllmConfig) -> Settings:
    """The settings in `additional_config`. Raises SettingsError."""
    return Settings.parse(_additional_config(vllm_config).get(SETTINGS_KEY) or {})


def resolve_scores(vllm_config: VllmConfig, settings: Settings) -> None:
    """Find the scores that `settings` select and write them into `vllm_config`.

    Raises ScoreFileError when a score file cannot be used or does not fit the model.
    """
    scores = _find_scores(vllm_config, settings)
    if scores.warning:
        logger.warning("HeadKV: %s", scores.warning)
    logger.info("HeadKV: head scores: %s (%s)", scores.source, scores.path or "no file")
    served = ServedScores.from_scores(scores)
    _additional_config(vllm_config)[SCORES_KEY] = served.model_dump(mode="json")


def read_scores(vllm_config: VllmConfig) -> FloatArray:
    """The resolved scores: [num_layers, num_kv_heads] of all layers with full attention."""
    return np.array(served_scores(vllm_config).values, dtype=np.float64)


def served_scores(vllm_config: VllmConfig) -> ServedScores:
    """The resolved scores with their source."""
    return ServedScores.model_validate(_additional_config(vllm_config)[SCORES_KEY])


def model_dtype(vllm_config: VllmConfig) -> torch.dtype:
    """The model's dtype, which vLLM has resolved before it serves."""
    dtype = vllm_config.model_config.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def full_layers(model_config: ModelConfig) -> list[int]:
    """The indices of the model's layers with full attention."""
    text = model_config.hf_text_config.to_dict()
    if not text.get("layer_types") and model_config.get_sliding_window() is not None:
        return []  # vLLM gives the window to all layers, however large it is
    return full_attention_layers(text, model_config.get_total_num_hidden_layers())


def query_blocks(vllm_config: VllmConfig, settings: Settings, block_size: int) -> int:
    """The blocks of a request that hold queries; see `budgets.request.num_query_blocks`."""
    model_config, parallel_config = vllm_config.model_config, vllm_config.parallel_config
    num_heads = model_config.get_num_attention_heads(parallel_config)
    group_size = num_heads // model_config.get_num_kv_heads(parallel_config)
    return num_query_blocks(group_size, settings.window, block_size)


def _find_scores(vllm_config: VllmConfig, settings: Settings) -> HeadScores:
    by_vllm = _identity_without_weights(vllm_config)
    if not needs_file(settings):
        return uniform_scores(by_vllm, "uniform, as set")
    try:
        identity = identify_model(vllm_config.model_config)
    except ScoreFileError as error:
        if settings.scores == "auto":
            reason = f"head scores cannot be looked up ({error}); {none_bundled_for(by_vllm)}"
            return uniform_scores(by_vllm, "uniform", reason)
        identity = by_vllm  # without safetensors files only the sizes are known
    return resolve(settings, identity)


def identify_model(model_config: ModelConfig) -> ModelIdentity:
    """The identity of the served model, from a folder or from the hub.

    If the weights of a hub's model are not in the cache, the hub sends the headers of the weight
    files. Raises ScoreFileError when the headers cannot be loaded.
    """
    model, revision = model_config.model, model_config.revision
    if Path(model).is_dir():
        return identify_checkpoint(Path(model))
    try:
        for name in WEIGHT_FILES:
            cached = try_to_load_from_cache(model, name, revision=revision)
            if isinstance(cached, str):
                return identify_checkpoint(Path(cached).parent)
    except (ScoreFileError, HFValidationError):
        pass  # an incomplete download, or not a valid name on the hub
    return identify(model_config.hf_config.to_dict(), _hub_weight_shapes(model, revision))


def _hub_weight_shapes(model: str, revision: str | None) -> dict[str, tuple[int, ...]]:
    try:
        metadata = get_safetensors_metadata(model, revision=revision)
    except Exception as error:
        # Any class: a hub that cannot be reached raises errors of the HTTP library, and another
        # release of the hub's client uses another library.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ScoreFileError(f"the weights of {model} cannot be identified: {reason}") from None
    return {
        name: tuple(tensor.shape)
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _identity_without_weights(vllm_config: VllmConfig) -> ModelIdentity:
    """Architecture and sizes as vLLM knows them. The fingerprint belongs to no model."""
    model_config = vllm_config.model_config
    return ModelIdentity(
        architecture=model_config.architecture,
        num_layers=len(full_layers(model_config)),
        num_heads=model_config.model_arch_config.total_num_attention_heads,
        num_kv_heads=model_config.get_total_num_kv_heads(),
        head_size=model_config.get_head_size(),
        fingerprint="0" * 64,
    )


def _additional_config(vllm_config: VllmConfig) -> dict[str, Any]:
    additional_config = vllm_config.additional_config
    if not isinstance(additional_config, dict):
        raise SettingsError(
            f"--additional-config must be a JSON object, not {shown(additional_config)}"
        )
    return additional_config

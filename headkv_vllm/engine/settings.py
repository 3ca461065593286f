# SPDX-License-Identifier: Apache-2.0
"""Our settings inside a VllmConfig: read, resolved once at start-up, and carried to the workers."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.config import VllmConfig

from headkv_vllm.config import Settings
from headkv_vllm.engine.logger import logger
from headkv_vllm.errors import ScoreFileError, SettingsError, shown
from headkv_vllm.scores.head_scores import HeadScores, resolve, uniform_scores
from headkv_vllm.scores.identity import ModelIdentity, identify_checkpoint

SETTINGS_KEY = "headkv"
SCORES_KEY = "headkv_scores"
"""Where the resolved scores travel, so that every process serves with the same ones."""


def read_settings(vllm_config: VllmConfig) -> Settings:
    """The settings in `additional_config`. Raises SettingsError."""
    return Settings.parse(_additional_config(vllm_config).get(SETTINGS_KEY) or {})


def resolve_scores(vllm_config: VllmConfig) -> None:
    """Find the scores that the settings ask for and write them into `vllm_config`.

    Raises ScoreFileError when a score file cannot be used or does not fit the model.
    """
    additional_config = _additional_config(vllm_config)
    if SCORES_KEY in additional_config:
        return
    scores = _find_scores(vllm_config, read_settings(vllm_config))
    if scores.warning:
        logger.warning("HeadKV: %s", scores.warning)
    logger.info("HeadKV: head scores: %s", scores.source)
    additional_config[SCORES_KEY] = scores.values.tolist()


def read_scores(vllm_config: VllmConfig) -> npt.NDArray[np.float64]:
    """The resolved scores: [num_layers, num_kv_heads] of the whole model."""
    return np.array(_additional_config(vllm_config)[SCORES_KEY], dtype=np.float64)


def _find_scores(vllm_config: VllmConfig, settings: Settings) -> HeadScores:
    model_config = vllm_config.model_config
    try:
        identity = identify_checkpoint(_checkpoint_folder(model_config.model))
    except ScoreFileError as error:
        if settings.scores not in ("auto", "uniform"):
            raise ScoreFileError(
                f"{settings.scores} cannot be matched with the model: {error}"
            ) from None
        reason = f"head scores cannot be looked up ({error}), so all heads get the same budget"
        return uniform_scores(_identity_without_weights(vllm_config), "uniform", reason)
    return resolve(settings, identity)


def _checkpoint_folder(model: str) -> Path:
    """The local folder of `model`, which may be a hub name whose snapshot is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return Path(model)
    config = try_to_load_from_cache(model, "config.json")
    if not isinstance(config, str):
        raise ScoreFileError(f"{model} is neither a folder nor in the local model cache")
    return Path(config).parent


def _identity_without_weights(vllm_config: VllmConfig) -> ModelIdentity:
    """Sizes as vLLM sees them, for uniform scores only: the fingerprint stands for no model."""
    model_config = vllm_config.model_config
    return ModelIdentity(
        architecture=model_config.architecture,
        num_layers=model_config.get_total_num_hidden_layers(),
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

# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from headkv_vllm.head_scores.file import Provenance, ScoredModel, ScoreFile
from headkv_vllm.head_scores.identity import ModelIdentity, identify

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
}
SHAPES: dict[str, tuple[int, ...]] = {"embed.weight": (10, 32), "norm.weight": (32,)}


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(CONFIG)


@pytest.fixture
def identity() -> ModelIdentity:
    return identify(CONFIG, SHAPES)


@pytest.fixture
def score_file(identity: ModelIdentity) -> ScoreFile:
    return make_score_file(identity)


def make_score_file(identity: ModelIdentity) -> ScoreFile:
    scores = np.random.default_rng(0).random((identity.num_layers, identity.num_heads))
    return ScoreFile(
        schema_version=1,
        model=ScoredModel(name="tiny-llama", identity=identity),
        method="retrieval",
        provenance=Provenance(tool_version="headkv-vllm 0.1.0", seed=0, lengths=(128, 256)),
        scores=scores.tolist(),
    )


@pytest.fixture
def checkpoint() -> Callable[..., Path]:
    """Writes a checkpoint: checkpoint(folder, shards={file name: {weight name: shape}})."""

    def write(
        folder: Path,
        shards: dict[str, dict[str, tuple[int, ...]]] | None = None,
        config: dict[str, Any] = CONFIG,
    ) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        shards = shards or {"model.safetensors": SHAPES}
        for file_name, shapes in shards.items():
            weights = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
            save_file(weights, folder / file_name)
        if len(shards) > 1:
            weight_map = {name: file for file, shapes in shards.items() for name in shapes}
            index = folder / "model.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return write

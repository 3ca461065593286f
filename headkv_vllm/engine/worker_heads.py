# SPDX-License-Identifier: Apache-2.0
"""Which of the model's layers and KV heads one worker holds."""

import numpy as np
import numpy.typing as npt
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.models.utils import extract_layer_index

from headkv_vllm.budgets.tensor_parallel import worker_kv_heads
from headkv_vllm.engine.settings import read_scores


def worker_scores(
    vllm_config: VllmConfig, layer_names: list[str], num_kv_heads: int
) -> npt.NDArray[np.float64]:
    """The scores of this worker's layers and KV heads: [len(layer_names), num_kv_heads]."""
    scores = read_scores(vllm_config)
    layers = [extract_layer_index(name) for name in layer_names]
    heads = worker_kv_heads(
        scores.shape[1],
        get_tensor_model_parallel_rank(),
        get_tensor_model_parallel_world_size(),
    )
    assert len(heads) == num_kv_heads
    return scores[np.ix_(layers, heads)]

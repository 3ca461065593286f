# SPDX-License-Identifier: Apache-2.0
"""The answer of GET config: a server's model and its settings."""

from pathlib import Path
from typing import Self, get_args

from pydantic import BaseModel

from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.config import PolicyName, ScoredPolicy, Settings
from headkv_vllm.engine.served_model import ServedModel
from headkv_vllm.version import tool_version


class ShownPolicy(BaseModel):
    """A policy that a request may ask for.

    uses_scores: whether it allocates budgets by head scores.
    adaptive: whether the prompt decides how a layer's budget is split among its heads.
    """

    name: PolicyName
    uses_scores: bool
    adaptive: bool


class ShownConfig(BaseModel):
    """A served model, and the settings that its requests start from.

    models: the names that requests may use.
    block_bytes: the bytes of one vLLM block, over all layers and the KV heads of all ranks.
    num_blocks: the blocks of all engines behind this server, including the first block of each
        engine, which vLLM never uses. null if the server does not know it.
    min_allowed_budget: the smallest budget above 0 that a request may ask for, in tokens.
    settings.scores: the name of the score file without its folder.
    """

    version: str
    vllm_version: str
    models: tuple[str, ...]
    settings: Settings
    min_allowed_budget: int
    policies: tuple[ShownPolicy, ...]
    num_layers: int
    num_kv_heads: int
    head_size: int
    bytes_per_element: int
    block_size: int
    block_bytes: int
    num_blocks: int | None
    max_model_len: int
    tensor_parallel_size: int

    @classmethod
    def from_served(cls, served: ServedModel) -> Self:
        """The configuration of `served`, without the paths of this machine."""
        num_layers, num_kv_heads = len(served.scores.values), len(served.scores.values[0])
        num_heads = max(num_kv_heads, served.tensor_parallel_size)
        return cls(
            version=tool_version(),
            vllm_version=served.vllm_version,
            models=served.names,
            settings=_without_folder(served.settings),
            min_allowed_budget=served.settings.min_allowed_budget,
            policies=_policies(served.settings),
            num_layers=num_layers,
            num_kv_heads=num_kv_heads,
            head_size=served.head_size,
            bytes_per_element=served.bytes_per_element,
            block_size=served.block_size,
            block_bytes=_block_bytes(served, num_layers * num_heads),
            num_blocks=served.num_blocks,
            max_model_len=served.max_model_len,
            tensor_parallel_size=served.tensor_parallel_size,
        )


def _block_bytes(served: ServedModel, num_heads: int) -> int:
    """Bytes of a key and a value, for each of `num_heads` heads and each token of a block."""
    return 2 * served.bytes_per_element * served.head_size * served.block_size * num_heads


def _without_folder(settings: Settings) -> Settings:
    return settings.model_copy(update={"scores": Path(settings.scores).name})


def _policies(settings: Settings) -> tuple[ShownPolicy, ...]:
    scored = get_args(ScoredPolicy)
    return tuple(
        ShownPolicy(name=name, uses_scores=name in scored, adaptive=POLICIES[name].adaptive)
        for name in settings.allowed_policies
    )

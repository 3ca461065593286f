# SPDX-License-Identifier: Apache-2.0
"""The engines that a benchmark compares. They run at the same time."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from benchmarks.harness.engine_process import EngineProcess
from benchmarks.harness.shapes import checkpoint
from headkv_vllm.head_scores.file import (
    SCHEMA_VERSION,
    Provenance,
    ScoredModel,
    ScoreFile,
    write_score_file,
)
from headkv_vllm.head_scores.identity import identify_checkpoint

SideName = Literal["headkv", "stock", "twin", "off"]
"""twin: stock vLLM with prompts as long as the kept part. off: headkv without compression."""

BLOCK_SIZE: Final = 32
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # With pages of 4 KiB, the speed of an engine depends on its cache's address, by up to 5 %.
    "THP_MEM_ALLOC_ENABLE": "1",
}

Side = Callable[..., Any]
"""`side(function, *arguments)` runs `function(llm, *arguments)` inside the side's engine."""


@contextmanager
def sides(
    names: tuple[SideName, ...],
    shape: str,
    max_model_len: int,
    max_num_seqs: int,
    one_by_one: bool = False,
    **more: Any,
) -> Iterator[dict[SideName, Side]]:
    """Start the engines, on random weights of `shape` in bfloat16, and end them.

    one_by_one: start one engine after the other, so that each can measure its GPU memory.
    more: more arguments of `vllm.LLM` for all engines.
    """
    folder = checkpoint(shape, torch.bfloat16)
    common = {
        "model": str(folder),
        "dtype": "bfloat16",
        "block_size": BLOCK_SIZE,
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        **more,
    }
    arguments = {name: common | arguments_of(name, folder) for name in names}
    with engines(arguments, one_by_one) as started:
        yield started


@contextmanager
def engines(
    arguments: Mapping[SideName, dict[str, Any]], one_by_one: bool = False
) -> Iterator[dict[SideName, Side]]:
    """Start an engine with each side's arguments of `vllm.LLM`, and end them."""
    with ExitStack() as stack:
        started = {}
        for name, each in arguments.items():
            started[name] = EngineProcess({**ENVIRONMENT, **_given(ENVIRONMENT)}, **each)
            stack.callback(started[name].stop)
            if one_by_one:
                started[name].wait_until_ready()
        for engine in started.values():
            engine.wait_until_ready()
        yield {name: engine.call for name, engine in started.items()}


def arguments_of(name: SideName, folder: Path) -> dict[str, Any]:
    """The arguments of `vllm.LLM` for a side."""
    if name in ("stock", "twin"):
        return {}
    settings = {"scores": str(score_file(folder)), "budget": 0 if name == "off" else 1024}
    return {"attention_backend": "HEADKV", "additional_config": {"headkv": settings}}


def score_file(folder: Path) -> Path:
    """A score file for the checkpoint in `folder`, with random scores, a few of them high."""
    path = folder / "scores.json"
    if not path.is_file():
        identity = identify_checkpoint(folder)
        heads = (identity.num_layers, identity.num_heads)
        drawn = np.random.default_rng(0).exponential(size=heads) ** 2
        scores = ScoreFile(
            schema_version=SCHEMA_VERSION,
            model=ScoredModel(name=folder.name, identity=identity),
            method="random",
            provenance=Provenance(tool_version=version("headkv-vllm"), seed=0),
            scores=drawn.tolist(),
        )
        write_score_file(path, scores)
    return path


def _given(names: dict[str, str]) -> dict[str, str]:
    """The values of these variables that the user has set."""
    return {name: os.environ[name] for name in names if name in os.environ}

# SPDX-License-Identifier: Apache-2.0
"""What `vllm serve --attention-backend headkv` says and does as it starts."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headkv_vllm.demo.server import HELD
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples
from headkv_vllm.needle.vocabulary import build_tokenizer
from headkv_vllm.resources import scores_dir
from tests.engine.helpers.server import VLLM, Server

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

HEADKV = ["--attention-backend", "headkv"]


def settings(**given: Any) -> list[str]:
    return ["--additional-config", json.dumps({"headkv": given})]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            settings(budget=-5),
            "headkv setting budget=-5 is not allowed: it must be 0 (off) or an integer of at "
            "least window + 1 (tokens)",
        ),
        (
            settings(budgett=128),
            "unknown headkv setting 'budgett': did you mean 'budget'? allowed are budget, "
            "keep_ratio, scores, beta, window, kernel_size, pooling, gqa_fold, min_blocks, policy, "
            "query_reduction, value_norm, sink, min_budget, max_budget, compress_every, "
            "compress_prefill, check_integrity",
        ),
        (
            settings(scores="/no/scores.json"),
            "no score file '/no/scores.json': expected the path of a file, or the name of a "
            "bundled one: needle, smollm2-135m-instruct",
        ),
        (
            ["--block-size", "24"],
            "--attention-backend headkv does not support --block-size (24): it must be a "
            "multiple of 16",
        ),
    ],
    ids=["value", "key", "score file", "flag"],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str) -> None:
    command = [VLLM, "serve", str(checkpoint_path()), *HEADKV, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert ended.stderr.splitlines().count(f"headkv: error: {line}") == 1
    assert "Traceback" not in ended.stderr + ended.stdout


@pytest.fixture
def unknown_model(tmp_path: Path) -> Path:
    """A checkpoint of random weights in a shape of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(1024)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_without_scores_is_served_with_a_warning(unknown_model: Path) -> None:
    with Server(unknown_model, *HEADKV, *settings(budget=64), "--enforce-eager") as server:
        completion = server.client.completions.create(
            model=server.model, prompt="river " * 500, max_tokens=8
        )
        warnings = [
            line for line in server.log().splitlines() if "no head scores are bundled" in line
        ]
    assert completion.usage is not None and completion.usage.completion_tokens > 0
    assert "WARNING" in warnings[0]
    assert '--additional-config \'{"headkv": {"scores": "FILE.json"}}\'' in warnings[0]


class VerboseServer(Server):
    """Its log says what each compressed request held."""

    log_level = "DEBUG"


def test_the_backend_alone_is_enough() -> None:
    """Budget 1,024 and block size 32 are the defaults, and the scores are found."""
    (sample,) = generate_samples("multi-key", 1200, 1, seed=5)
    with VerboseServer(checkpoint_path(), *HEADKV) as server:
        completion = server.client.completions.create(
            model=server.model, prompt=sample.prompt, temperature=0, max_tokens=32
        )
        log = server.log()
    assert completion.choices[0].text.split() == sample.answer.split()
    assert str(scores_dir() / "needle.json") in log
    num_compressed_blocks, num_full_blocks = (1024 - 8) // 32, (1200 - 8) // 32
    ((_, before, after),) = HELD.findall(log)
    assert int(before) == num_compressed_blocks + num_full_blocks + 1
    assert int(after) == num_compressed_blocks + 1

# SPDX-License-Identifier: Apache-2.0
"""`headkv check`, on real checkpoints and on configurations without weights."""

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headkv_vllm.cli.main import app
from headkv_vllm.needle import checkpoint_path
from tests.engine.helpers.bookkeeping_engine import write_model

pytestmark = pytest.mark.engine

SETTINGS = ["--additional-config", '{"headkv": {"budget": 128}}']
SIZES = ["--max-model-len", "2000", "--skip-tokenizer-init"]


@pytest.fixture(autouse=True)
def vllm_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """As in the command's own process, where the variable that says so is read in time."""
    caplog.set_level(logging.CRITICAL, "vllm")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments])


def words(result: Result) -> str:
    """The output in one line, however wide the console is."""
    return " ".join(result.output.split())


def test_a_model_that_is_served() -> None:
    result = run(str(checkpoint_path()), "--max-model-len", "2000", *SETTINGS)
    assert result.exit_code == 0, result.output
    said = words(result)
    assert "layers 4 of 4 are compressed head scores" in said
    assert "needle.json block size 32 tokens KV cache of 2,000 tokens" in said
    # Of 2,000 tokens, 3 blocks and the last 16 tokens are kept.
    assert "MiB after its prefill (5.6%)" in said and "in stock vLLM" in said
    assert said.endswith("headkv and vLLM accept this model and these options.")


def test_layers_with_a_sliding_window_are_counted(tmp_path: Path) -> None:
    gemma = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 32}
    layers = {"num_hidden_layers": 12, "sliding_window": 64}
    result = run(str(write_model(tmp_path / "model", **gemma, **layers)), *SIZES)
    assert result.exit_code == 0, result.output
    said = words(result)
    assert "layers 2 of 12 are compressed; 10 have a sliding window" in said
    assert "head scores none for this model, so all heads get the same budget" in said


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {},
            ["--block-size", "24"],
            "--attention-backend headkv does not support --block-size (24): it must be a multiple "
            "of 16",
        ),
        ({}, ["--attention-backend", "CPU_ATTN"], "another attention backend is given"),
        ({"architectures": ["NoSuchModel"]}, [], "vLLM refuses: "),
    ],
    ids=["flag", "backend", "model"],
)
def test_what_is_refused_is_one_line(
    tmp_path: Path, changes: dict[str, object], arguments: list[str], message: str
) -> None:
    result = run(str(write_model(tmp_path / "model", **changes)), *SIZES, *arguments)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("headkv: error: ")]
    assert line.startswith(f"headkv: error: {message}")
    assert "Traceback" not in result.output


def test_help_is_its_own() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Usage: headkv check MODEL [any option of vllm serve]" in result.output

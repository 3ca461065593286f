# SPDX-License-Identifier: Apache-2.0
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from headkv_vllm.budgets.plan import Plan, make_plan
from headkv_vllm.cli.main import app
from headkv_vllm.config import Settings
from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.file import (
    Provenance,
    ScoredModel,
    ScoreFile,
    read_score_file,
    write_score_file,
)
from headkv_vllm.head_scores.identity import ModelIdentity
from headkv_vllm.head_scores.library import find_score_file
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.resources import scores_dir

NEEDLE = scores_dir() / "needle.json"


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def planned(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return Plan.model_validate_json(result.stdout)


def write_scores(path, num_layers, num_heads, num_kv_heads):
    identity = ModelIdentity(
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=128,
        fingerprint="0" * 64,
    )
    file = ScoreFile(
        schema_version=1,
        model=ScoredModel(name="wide", identity=identity),
        method="r2",
        provenance=Provenance(tool_version="a test"),
        scores=np.random.default_rng(0).random((num_layers, num_heads)).tolist(),
    )
    write_score_file(path, file)
    return path


def rows_of(text):
    """The numbers of each line that begins with a number."""
    lines = [line.split() for line in text.splitlines()]
    return [[float(word) for word in words] for words in lines if words and words[0].isdigit()]


def test_totals_come_first_and_then_every_head():
    result = run("needle", "--prompt-tokens", 2000, "--keep-ratio", 0.125)
    assert result.exit_code == 0
    totals, heads = result.stdout.split("\n\n")
    assert re.search(r"blocks held after prefill +8 +63\n", totals)
    assert re.search(r"blocks held in prefill +70 +63\n", totals)
    assert re.search(r"KV cache after prefill +0\.50 MiB +3\.94 MiB\n", totals)
    assert re.search(r"tokens per KV head, mean +240\.0 +2000\n", totals)
    assert re.search(r"part of the prompt +12\.0% +100\.0%", totals)
    made = planned("needle", "--prompt-tokens", 2000, "--keep-ratio", 0.125)
    assert rows_of(heads) == [[layer, *row] for layer, row in enumerate(made.head_blocks)]


def test_nothing_is_cut_off_where_the_console_is_narrow(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    path = write_scores(tmp_path / "a.json", 3, 32, 16)
    result = run(path, "--prompt-tokens", 100_000, "--budget", 8192)
    assert "…" not in result.stdout
    made = planned(path, "--prompt-tokens", 100_000, "--budget", 8192)
    assert rows_of(result.stdout) == [[layer, *row] for layer, row in enumerate(made.head_blocks)]


def test_a_wide_model_is_shown_by_layer(tmp_path):
    path = write_scores(tmp_path / "wide.json", 5, 32, 32)
    result = run(path, "--prompt-tokens", 10_000)
    blocks = planned(path, "--prompt-tokens", 10_000).head_blocks
    expected = [[n, min(row), round(sum(row) / 32, 1), max(row)] for n, row in enumerate(blocks)]
    assert rows_of(result.stdout) == pytest.approx(np.array(expected), abs=0.05)


def test_a_request_that_is_not_compressed_says_why():
    result = run("needle", "--prompt-tokens", 71)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("not compressed: the prompt is too short")
    assert rows_of(result.stdout) == []


def test_settings_reach_the_plan():
    given = {
        "budget": 300,
        "beta": 2.5,
        "window": 16,
        "gqa_fold": "max",
        "min_blocks": 2,
        "policy": "headkv",
    }
    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
    made = planned(
        NEEDLE, "--prompt-tokens", 3000, "--block-size", 16, "--kv-cache-dtype", "float32",
        "--tensor-parallel-size", 2, *words,
    )  # fmt: skip
    scores = fold_query_heads(read_score_file(NEEDLE).values, 4, "max")
    assert made == make_plan(scores, Settings.parse(given), 3000, 16, 32, 4, 2)
    default = planned(NEEDLE, "--prompt-tokens", 3000, "--block-size", 16)
    scores = fold_query_heads(read_score_file(NEEDLE).values, 4, "mean")
    assert default == make_plan(scores, Settings(), 3000, 16, 32, 2)


@pytest.mark.parametrize(
    ("dtype", "size"), [("auto", 2), ("bfloat16", 2), ("float16", 2), ("float32", 4), ("fp8", 1)]
)
def test_bytes_follow_the_dtype(dtype, size):
    made = planned("needle", "--prompt-tokens", 2000, "--kv-cache-dtype", dtype)
    assert made.kv_bytes_stock == 63 * 32 * 2 * 4 * 4 * 32 * size


def test_a_picture_is_written_beside_the_json(tmp_path):
    path = tmp_path / "plan.png"
    result = run("needle", "--prompt-tokens", 2000, "--json", "--png", path)
    assert json.loads(result.stdout)["compressed"]
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--budget", 100, "--keep-ratio", 0.5],
            "budget=100 and keep_ratio=0.5 exclude each other",
        ),
        (["--budget", -1], "budget=-1 is not allowed"),
        (["--budget", 8], "budget=8 is not allowed"),
        (["--keep-ratio", 0], "keep_ratio=0.0 is not allowed"),
        (["--keep-ratio", "nan"], "keep_ratio=nan is not allowed"),
        (["--policy", "snapkv"], "policy='snapkv' is not allowed"),
        (["--beta", 1], "beta=1.0 is not allowed"),
        (["--window", 0], "window=0 is not allowed"),
        (["--gqa-fold", "min"], "gqa_fold='min' is not allowed"),
        (["--min-blocks", 0], "min_blocks=0 is not allowed"),
        (["--block-size", 0], "block size 0 is not allowed"),
        (["--kv-cache-dtype", "int4"], "KV cache dtype 'int4' is not allowed"),
        (["--tensor-parallel-size", 0], "tensor parallel size 0 is not allowed"),
        (["--tensor-parallel-size", 3], "must divide the model's 8 attention heads"),
        (["--tensor-parallel-size", 10**12], "must divide the model's 8 attention heads"),
        (["--png", "plan"], "must have one of the suffixes"),
        (["--png", "/nowhere/plan.png"], "cannot be written: No such file"),
        (["--prompt-tokens", 0], "prompt length 0 is not allowed"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_in_one_line(arguments, message):
    result = run("needle", "--prompt-tokens", 2000, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("headkv: error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_no_score_file_is_refused(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for file, message in ((broken, "cannot be used"), ("nedle", "no score file 'nedle'")):
        result = run(file, "--prompt-tokens", 2000)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr and result.stderr.count("\n") == 1


def test_the_length_must_be_given():
    assert run("needle").exit_code == 2


class TestFindScoreFile:
    def test_a_name_stands_for_the_bundled_file(self):
        assert find_score_file("needle") == NEEDLE

    def test_a_file_comes_before_a_bundled_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "needle").mkdir()
        assert find_score_file("needle") == NEEDLE
        (tmp_path / "needle").rmdir()
        (tmp_path / "needle").write_text("{}")
        assert find_score_file("needle").read_text() == "{}"

    def test_a_home_folder_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a.json").write_text("{}")
        assert find_score_file("~/a.json") == tmp_path / "a.json"

    @pytest.mark.parametrize("text", ["", ".", "nothing", "a\0b", "x" * 5000, "../scores/needle"])
    def test_anything_else_is_refused_with_the_names_that_exist(self, text, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ScoreFileError, match=r"name of a bundled one: .*needle") as raised:
            find_score_file(text)
        assert "\n" not in str(raised.value)

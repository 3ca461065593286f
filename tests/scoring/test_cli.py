# SPDX-License-Identifier: Apache-2.0
"""`headkv score` as a user runs it, on the bundled model."""

import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from headkv_vllm.cli import app
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.model import needle_config
from headkv_vllm.resources import scores_dir
from headkv_vllm.scores.file import read_score_file
from headkv_vllm.scoring.journal import Journal
from tests.interrupts import heed_interrupts

SHIPPED = scores_dir() / "needle.json"
MAX_FILE_BYTES = 12_000
"""Room for a journal's first line and some results."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The samples of the shipped file, in a file of the same name."""
    path = tmp_path_factory.mktemp("samples") / "needle-samples.jsonl"
    path.write_text(headkv("needle", "samples").stdout)
    return path


def headkv(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def score(out, samples, *options, model=None):
    """The arguments that made the shipped file; see scores/README.md."""
    model = model or checkpoint_path()
    template = "{context} {question}"
    asked = ["--samples", samples, "--template", template, "--name", "needle", "--threads", 1]
    return ["score", model, *asked, "--out", out, *options]


def start(arguments, **options):
    code = "from headkv_vllm.cli import app; app()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture(scope="module")
def complete(samples, tmp_path_factory):
    """The score file of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("complete") / "scores.json"
    done = headkv(*score(out, samples))
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert not Journal.beside(out).exists()
    return out


def test_the_shipped_file_is_what_the_command_makes(complete):
    shipped, made = read_score_file(SHIPPED), read_score_file(complete)
    assert shipped.model == made.model and shipped.method == made.method == "r2"
    assert shipped.provenance == made.provenance
    # Another processor may round the last digit otherwise.
    np.testing.assert_allclose(made.values, shipped.values, atol=2e-6)


def test_twice_is_the_same_file(complete, samples, tmp_path):
    assert headkv(*score(tmp_path / "again.json", samples)).exit_code == 0
    assert (tmp_path / "again.json").read_bytes() == complete.read_bytes()


@pytest.mark.slow
def test_interrupted_and_resumed_is_uninterrupted(complete, samples, tmp_path):
    out = tmp_path / "scores.json"
    running = start(score(out, samples), preexec_fn=heed_interrupts)
    wait_for_results(running, Journal.beside(out))
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "the same command goes on where it stopped" in errors and "Traceback" not in errors
    assert not out.exists()
    kept = len(Journal.beside(out).read_bytes().splitlines()) - 1
    assert 0 < kept < 48
    done = headkv(*score(out, samples))
    assert done.exit_code == 0 and f"going on after {kept} samples" in done.output
    assert out.read_bytes() == complete.read_bytes()
    assert not Journal.beside(out).exists()


def wait_for_results(running, journal, least=2):
    for _ in range(3000):
        if journal.exists() and len(journal.read_bytes().splitlines()) > least:
            return
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    pytest.fail("no results within 30 s")


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_done(complete, samples, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))

    out = tmp_path / "scores.json"
    running = start(score(out, samples), preexec_fn=limit)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "partial results cannot be kept" in errors and "Traceback" not in errors
    assert not out.exists() and Journal.beside(out).stat().st_size <= MAX_FILE_BYTES
    assert headkv(*score(out, samples)).exit_code == 0
    assert out.read_bytes() == complete.read_bytes()


def test_partial_results_of_another_run_are_not_mixed_in(samples, tmp_path):
    out = tmp_path / "scores.json"
    Journal.resume(Journal.beside(out), {"method": "r2"})
    refused = headkv(*score(out, samples))
    assert refused.exit_code == 1 and "another run" in refused.output
    assert headkv(*score(out, samples, "--restart")).exit_code == 0


def test_an_existing_file_is_kept(samples, tmp_path):
    out = tmp_path / "scores.json"
    out.write_text("mine")
    refused = headkv(*score(out, samples))
    assert refused.exit_code == 1 and "--force" in refused.output
    assert out.read_text() == "mine"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The bundled model's shape and tokenizer with random weights: it answers nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    LlamaForCausalLM(needle_config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint_path()).save_pretrained(folder)
    return folder


def test_a_model_that_fails_the_questions_gets_no_file(untrained, samples, tmp_path):
    for options in ([], ["--allow-few"]):
        out = tmp_path / "scores.json"
        refused = headkv(*score(out, samples, *options, model=untrained))
        assert refused.exit_code == 1
        assert "answered 0 of 48 samples" in " ".join(refused.output.split())
        assert not out.exists() and Journal.beside(out).exists()


@pytest.mark.parametrize("method", ["r2", "r"])
def test_built_in_samples_reach_the_model(method, tmp_path):
    """The bundled model reads no English, so that few answers are right is all it can show."""
    arguments = ["score", checkpoint_path(), "--samples", 1, "--lengths", "300,400"]
    refused = headkv(*arguments, "--method", method, "--out", tmp_path / "s.json", "--threads", 1)
    assert refused.exit_code == 1
    assert "answered 0 of 2 samples" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "no/such/model"], "no/such/model"),
        (["score", checkpoint_path(), "--method", "r3"], "--method is 'r3'"),
        (["score", checkpoint_path(), "--samples", "missing.jsonl"], "missing.jsonl"),
        (["score", "x" * 300], "xxx"),
        (["score", "[/no]"], "'[/no]'"),
        (["score", checkpoint_path(), "--lengths", "9000"], "8192"),
        (["score", checkpoint_path(), "--lengths", "2147483647"], "8192"),
        (["score", checkpoint_path(), "--lengths", "10"], "10"),
        (["score", checkpoint_path(), "--haystack", "missing.txt"], "missing.txt"),
        (["score", checkpoint_path(), "--template", "{context}"], "{question}"),
        (["score", checkpoint_path(), "--device", "tpu"], "tpu"),
        (["score", checkpoint_path(), "--dtype", "int8"], "int8"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = headkv(*arguments)
    assert refused.exit_code == 1, refused.output
    assert not isinstance(refused.exception, Exception) or refused.exception.code == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("headkv: error")]
    assert message in line
    assert not list(tmp_path.iterdir())

# SPDX-License-Identifier: Apache-2.0
"""`headkv score` as a user runs it, on the bundled model."""

import json
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

from headkv_vllm.cli.main import app
from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.resources import scores_dir
from headkv_vllm.scoring.attention_scores import METHODS
from headkv_vllm.scoring.journal import Journal
from headkv_vllm.scoring.measuring import ANSWERS
from tests.interrupts import heed_interrupts
from tools.needle_training.model import needle_config

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
    """The arguments that made the shipped file; see docs/head-scores.md."""
    model = model or checkpoint_path()
    template = "{context} {question}"
    asked = ["--samples", samples, "--template", template, "--name", "needle", "--threads", 1]
    asked += ["--method", "r2"]
    return ["score", model, *asked, "--out", out, *options]


def start(arguments, **options):
    code = "from headkv_vllm.cli.main import app; app()"
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
    assert "the same command continues the run" in errors and "Traceback" not in errors
    assert not out.exists()
    kept = len(Journal.beside(out).read_bytes().splitlines()) - 1
    assert 0 < kept < 48
    done = headkv(*score(out, samples))
    assert done.exit_code == 0 and f"continuing after {kept} samples" in done.output
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


@pytest.mark.parametrize(("options", "tried"), [([], 10), (["--allow-few"], 48)])
def test_a_model_that_fails_the_questions_gets_no_file(
    untrained, samples, tmp_path, options, tried
):
    """And is asked no more than ten of them."""
    out = tmp_path / "scores.json"
    refused = headkv(*score(out, samples, *options, model=untrained))
    assert refused.exit_code == 1
    message = " ".join(refused.stderr.split())
    assert f"none of {tried} samples counts: sample {tried} expects '" in message
    assert "the model says '" in message and "--no-chat" in message
    assert not out.exists() and len(Journal.beside(out).read_bytes().splitlines()) == 1 + tried


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_built_in_samples_reach_the_model(method, answers, tmp_path):
    """The bundled model reads no English, so that no answer is right is all it can show."""
    arguments = ["score", checkpoint_path(), "--samples", 1, "--lengths", "300,400"]
    options = ["--method", method, "--answers", answers, "--threads", 1]
    refused = headkv(*arguments, *options, "--out", tmp_path / "s.json")
    assert refused.exit_code == 1
    assert "none of 2 samples counts" in " ".join(refused.output.split())


@pytest.mark.parametrize("answers", ANSWERS)
def test_a_file_of_questions_and_answers_is_enough_for_gradients(samples, tmp_path, answers):
    """Without evidence, and they name the head that the attention to the evidence names."""
    lines = [json.loads(line) for line in samples.read_text().splitlines()[:24:4]]
    own = tmp_path / "own.jsonl"
    kept = ("context", "question", "answer")
    own.write_text("".join(json.dumps({key: line[key] for key in kept}) + "\n" for line in lines))
    out = tmp_path / "scores.json"
    done = headkv(*score(out, own, "--method", "grad", "--answers", answers))
    assert done.exit_code == 0, done.output
    assert "samples: 6 of 6, 6 count" in done.stderr
    made = read_score_file(out)
    assert (made.method, made.provenance.answers) == ("grad", answers)
    assert made.provenance.num_accepted == made.provenance.num_samples == 6
    best = [
        fold_query_heads(file.values, 4, "mean").argmax()
        for file in (made, read_score_file(SHIPPED))
    ]
    assert best[0] == best[1]


def test_the_chat_template_is_used_where_there_is_one(samples, tmp_path):
    """The bundled model's adds nothing, so that its samples are right with it and without."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(samples.read_text().splitlines(keepends=True)[:2]))
    used = {}
    for option in ("", "--chat", "--no-chat"):
        out = tmp_path / f"scores{option}.json"
        done = headkv(*score(out, few, *filter(None, [option])))
        assert done.exit_code == 0, done.output
        used[option] = read_score_file(out).provenance.chat
    assert used == {"": True, "--chat": True, "--no-chat": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "no/such/model"], "no/such/model"),
        (["score", checkpoint_path(), "--method", "r3"], "--method is 'r3'"),
        (["score", checkpoint_path(), "--answers", "own"], "--answers is 'own'"),
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

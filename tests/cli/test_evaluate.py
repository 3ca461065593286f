# SPDX-License-Identifier: Apache-2.0
"""`headkv eval` refuses what does not do in one line, before any server starts."""

import pytest
from typer.testing import CliRunner

from headkv_vllm.cli.main import app
from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation import request as parse
from headkv_vllm.evaluation.cells import CellCompression
from headkv_vllm.evaluation.request import EvalRequest
from headkv_vllm.evaluation.run_record import RunRecord
from headkv_vllm.evaluation.serving import EvaluatedServer, serve_arguments, servers_for
from headkv_vllm.needle import checkpoint_path
from tests.scoring.small_models import small_tokenizer

CHECKPOINT = checkpoint_path()
NEEDLE = ("--tasks", "needle/single", "--lengths", "512", "-n", "2")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments, model=CHECKPOINT):
    return CliRunner().invoke(app, ["eval", str(model), *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "needle/singel"], "--tasks has 'needle/singel', allowed are needle/single"),
        (["--tasks", ""], "--tasks is '', expected values with commas"),
        (["--tasks", "needle/single,,"], "expected values with commas between them"),
        (["--policies", "snapkv"], "--policies has 'snapkv', allowed are"),
        (["--policies", "headk"], "--policies has 'headk', allowed are headkv"),
        (["--budgets", "0"], "--budgets has '0', allowed are integers from 1"),
        (["--budgets", "64,-1"], "--budgets has '-1'"),
        (["--budgets", "1.5"], "--budgets has '1.5'"),
        (["--budgets", "0.x"], "--budgets has '0.x'"),
        (["--budgets", "nan"], "--budgets has 'nan'"),
        (["--budgets", "8"], "headkv setting budget=8 is not allowed"),
        (["--lengths", "-1"], "--lengths is '-1', allowed are integers from 0"),
        (["--lengths", "1k"], "--lengths is '1k'"),
        (["--lengths", "9000"], "allowed are 48 to 8000"),
        (["-n", "0"], "-n is 0, allowed are integers from 1"),
        (["--seed", "-1"], "--seed is -1, allowed are integers from 0"),
        (["--settings", "[1]"], "--settings is '[1]', expected a JSON object"),
        (["--settings", "{"], "--settings is '{', expected a JSON object"),
        (["--settings", '{"windw": 3}'], "did you mean 'window'?"),
        (["--settings", '{"budget": 3}'], "--settings has 'budget', use --budgets instead"),
        (["--settings", '{"policy": "headkv"}'], "use --policies instead"),
        (["--settings", '{"scores": "no.json"}'], "no.json"),
        (["--block-size", "0"], "--block-size is 0, allowed are integers from 1"),
        (["--dtype", "fp8"], "--dtype has 'fp8', allowed are"),
        (["--max-model-len", "0"], "--max-model-len is 0, allowed are integers from 1"),
        (["--max-model-len", "512"], "but --max-model-len is 512"),
        (["--max-tokens", "0"], "--max-tokens is 0, allowed are integers from 1"),
        (["--concurrency", "0"], "--concurrency is 0, allowed are integers from 1"),
        (["--data", "no"], "--data is 'no', which is not a folder"),
        (["--out", __file__], "which is not a folder"),
        (["--url", "localhost:1"], "--url is 'localhost:1', expected http://"),
        (["--url", "http://127.0.0.1:1", "--policies", "full"], "--policies cannot be given"),
        (["--url", "http://127.0.0.1:1", "--budgets", "64"], "--budgets cannot be given"),
        (["--url", "http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
        (["--serve-args", "'"], "--serve-args is"),
        (
            ["--serve-args", "--block_size=3"],
            "--serve-args has '--block_size=3', which headkv eval",
        ),
        (["--serve-args", "--port 3"], "--serve-args has '--port', which headkv eval sets"),
        (["--serve-args", "--seed 1 -ac.backend=headkv"], "--serve-args has '-ac.backend=headkv'"),
        (["--tokenizer", "no such"], "'no such'"),
        (["--chat", "--tokenizer", "plain"], "has no chat template, which --chat needs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_does_not_do_is_refused_in_one_line(arguments, message, tmp_path):
    if "plain" in arguments:
        small_tokenizer().save_pretrained("plain")
    result = run(*NEEDLE, *arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.splitlines()[-1].startswith("headkv: error: ")
    assert message in result.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.log"))


@pytest.mark.parametrize("model", ["no such model", "/"])
def test_a_model_that_is_none_is_refused(model):
    result = run(*NEEDLE, model=model)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("headkv: error: ")


def test_results_of_another_run_stay_as_they_are(tmp_path):
    RunRecord.now({"model": "other"}, "", {}, {}).write_to(tmp_path / "out")
    before = (tmp_path / "out/run.json").read_bytes()
    result = run(*NEEDLE, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "has results of another run, with" in result.stderr
    assert (tmp_path / "out/run.json").read_bytes() == before


def test_tasks_must_be_given_and_help_names_the_options():
    assert run().exit_code == 2
    assert "--question-agnostic" in run("--help").stdout


def test_what_is_not_given_compares_the_method_with_both_ends():
    assert parse.parse_compressions(None, None, {}, None) == (
        CellCompression("full"),
        CellCompression("headkv", 128),
        CellCompression("uniform", 128),
    )
    assert parse.parse_compressions(None, None, {}, "http://a") == (CellCompression("given"),)
    assert parse.parse_url("http://a:1/v1/") == "http://a:1"
    assert parse.parse_lengths("512, 0,512") == (512, 0)


def test_budgets_are_checked_with_the_settings_they_will_meet():
    with pytest.raises(SettingsError, match="budget=64 is not allowed"):
        parse.parse_compressions("full,uniform", "128,64", {"window": 64}, None)
    assert parse.parse_compressions("full", "64", {"window": 64}, None) == (
        CellCompression("full"),
    )


def request(**changes):
    given = {
        "model": "m",
        "tasks": ("a",),
        "lengths": (1,),
        "compressions": (),
        "n": 1,
        "seed": 0,
        "out": None,
        "settings": {"window": 16},
        **changes,
    }
    return EvalRequest(**given)


COMPARED = (CellCompression("full"), CellCompression("uniform", 64), CellCompression("headkv", 0.5))


def test_one_server_is_stock_and_the_other_serves_all_that_is_compressed():
    stock, ours = servers_for(request(compressions=COMPARED))
    assert stock == EvaluatedServer("stock", COMPARED[:1]) and ours == EvaluatedServer(
        "headkv", COMPARED[1:]
    )
    assert stock.arguments(COMPARED[0]) == {}
    assert ours.arguments(COMPARED[1]) == {"headkv_policy": "uniform", "headkv_budget": 64}
    assert ours.arguments(COMPARED[2]) == {"headkv_policy": "headkv", "headkv_keep_ratio": 0.5}
    assert servers_for(request(compressions=COMPARED[:1])) == [stock]
    assert servers_for(request(compressions=COMPARED[1:])) == [ours]
    (given,) = servers_for(request(compressions=(CellCompression("given"),)))
    assert given.arguments(CellCompression("given")) == {}


def test_without_stock_there_is_one_server_for_all():
    (server,) = servers_for(request(compressions=COMPARED, stock=False))
    assert server == EvaluatedServer("headkv", COMPARED)
    assert server.arguments(COMPARED[0]) == {"headkv_budget": 0}
    alone = request(compressions=COMPARED[:1], stock=False)
    assert alone.server_settings == {"window": 16, "budget": 0}


def test_our_server_looks_scores_up_where_any_policy_uses_them():
    stock, ours = servers_for(request(compressions=COMPARED))
    given = request(block_size=32, compressions=COMPARED)
    full = serve_arguments(given, stock)
    assert full == ["m", "--served-model-name", "evaluated", "--dtype", "auto"]
    words = serve_arguments(given, ours)
    assert words[: len(full)] == full
    assert words[len(full) :] == [
        *("--attention-backend", "headkv", "--additional-config"),
        '{"headkv": {"window": 16, "keep_ratio": 0.5, "policy": "headkv"}}',
        *("--block-size", "32"),
    ]
    without = request(compressions=COMPARED[:2])
    assert without.server_settings == {"window": 16, "policy": "uniform", "budget": 64}


def test_options_reach_the_server():
    given = request(
        max_model_len=512, tokenizer="t", question_agnostic=True, serve_arguments=("--seed", "1")
    )
    words = serve_arguments(given, EvaluatedServer("stock", ()))
    for pair in (
        ("--max-model-len", "512"),
        ("--tokenizer", "t"),
        ("--logits-processors", "headkv_vllm.engine.forced_tokens:ForcedTokens"),
        ("--seed", "1"),
    ):
        assert tuple(words[words.index(pair[0]) :][:2]) == pair

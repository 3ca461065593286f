# SPDX-License-Identifier: Apache-2.0
"""`headkv serve`: what it adds to `vllm serve`, what it leaves alone, and what it refuses."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headkv_vllm.cli.main import app
from headkv_vllm.cli.serve import check_model_argument, names_backend, plugins
from headkv_vllm.errors import SettingsError

HEADKV = str(Path(sys.executable).with_name("headkv"))
POINTS = """[vllm.general_plugins]
theirs = os:getpid
[vllm.stat_logger_plugins]
counting = os:getpid
[vllm.endpoint_plugins]
theirs = os:getpid
routes-only = os:getpid
"""


@pytest.fixture
def other_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package with plugins of its own, installed."""
    metadata = tmp_path / "other-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    assert {"theirs", "headkv"} <= {p.name for p in entry_points(group="vllm.general_plugins")}


@pytest.mark.usefixtures("other_plugins")
def test_every_plugin_that_vllm_would_load_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    named = plugins({}).split(",")
    assert {"theirs", "counting", "headkv", "lora_filesystem_resolver"} <= set(named)
    assert "routes-only" not in named
    assert len(named) == len(set(named))
    assert "'theirs' adds routes too" in capsys.readouterr().err


@pytest.mark.usefixtures("other_plugins")
@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("theirs", "theirs,headkv"),
        ("headkv,theirs", "headkv,theirs"),
        ("", "headkv"),
        ("a,,b", "a,b,headkv"),
    ],
)
def test_the_users_own_choice_is_kept(
    named: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plugins({"VLLM_PLUGINS": named}) == expected
    assert capsys.readouterr().err == ""


def test_everything_else_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr(os, "execve", lambda *arguments: called.append(arguments))
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    monkeypatch.setenv("KEPT", "as it was")
    config = tmp_path / "c.yaml"
    config.write_text("port: 1\n")
    given = ["org/model", "--config", str(config), "-tp", "2", "-O3", "-cc.mode=none"]
    given += ["--additional-config", '{"headkv": {"budget": 5}}', "--lora-modules", "a=b", "c=d"]
    CliRunner().invoke(app, ["serve", *given], catch_exceptions=False)
    ((path, command, environment),) = called
    assert path == command[0] == sys.executable
    run = ["-m", "vllm.entrypoints.cli.main", "serve"]
    assert command[1:] == [*run, *given, "--attention-backend", "headkv"]
    assert environment["VLLM_PLUGINS"] == "theirs,headkv"
    assert environment["KEPT"] == "as it was"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--attention-backend", "CPU_ATTN"],
        ["--attention_backend=headkv"],
        ["--attention-config.backend", "headkv"],
        ["--attention-config", '{"backend": "headkv"}'],
        ["-ac", '{"backend": "headkv"}'],
    ],
)
def test_a_backend_that_is_named_stays(arguments: list[str]) -> None:
    assert names_backend(["model", *arguments])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("attention-backend: headkv\n", True),
        ("attention_backend: headkv\n", True),
        ("attention-config:\n  backend: headkv\n", True),
        ("attention-config:\n  flash_attn_version: 2\n", False),
        ("port: 3\n", False),
    ],
)
def test_a_backend_in_the_config_file_stays(tmp_path: Path, text: str, named: bool) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    assert names_backend(["model", "--config", str(config)]) is named


def test_no_backend_is_named_by_other_options() -> None:
    assert not names_backend(["model", "--port", "3", "-ac", '{"flash_attn_version": 2}'])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no MODEL"),
        (["--port", "8000"], "no MODEL"),
        (["--config", "port.yaml"], "no MODEL"),
        (["--config", "missing.yaml"], "'missing.yaml', which cannot be read"),
        (["--config", "list.yaml"], "which has no options"),
        (["--config", "broken.yaml"], "'broken.yaml', which cannot be read"),
        (["./missing"], "MODEL is './missing'"),
        (["--model", "/missing/model"], "MODEL is '/missing/model'"),
    ],
)
def test_a_missing_model_is_told_of_at_once(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "port.yaml").write_text("port: 3\n")
    (tmp_path / "list.yaml").write_text("- 3\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(SettingsError, match=message):
        check_model_argument(arguments)
    shown = CliRunner().invoke(app, ["serve", *arguments])
    assert shown.exit_code == 1
    assert len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["org/model"], ["s3://a/b/c"], ["--model", "org/m"], ["--model=org/m"], ["--help=all"]],
)
def test_a_model_may_be_a_hubs_name(arguments: list[str]) -> None:
    check_model_argument(arguments)


def test_a_model_may_be_named_in_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: org/model\n")
    check_model_argument(["--config", str(config)])


@pytest.mark.parametrize("arguments", [["--help"], ["MODEL", "-h"]])
def test_the_help_teaches(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, ["serve", *arguments])
    assert shown.exit_code == 0
    for words in ("Examples:", "/headkv/dashboard", "VLLM_PLUGINS", "--help=all"):
        assert words in shown.stdout


@pytest.mark.slow
def test_it_becomes_vllm_serve() -> None:
    """Its own parser speaks, with its own exit code."""
    command = [HEADKV, "serve", "org/model", "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-option" in done.stderr

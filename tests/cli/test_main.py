# SPDX-License-Identifier: Apache-2.0
"""The `headkv` command explains itself and finds its parts."""

from typer.testing import CliRunner

from headkv_vllm.cli.main import app
from headkv_vllm.needle import checkpoint_path


def test_help_names_the_flag_and_the_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for word in ("--attention-backend", "demo", "needle"):
        assert word in result.stdout


def test_needle_path_is_the_bundled_folder() -> None:
    result = CliRunner().invoke(app, ["needle", "path"])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(checkpoint_path())


def test_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(app, ["serve-me"])
    assert result.exit_code == 2
    assert "serve-me" in result.output

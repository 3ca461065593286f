# SPDX-License-Identifier: Apache-2.0
"""What the commands share."""

from pathlib import Path

import pytest
import typer

from headkv_vllm.command_line import check_out, model_name, readable_errors
from headkv_vllm.errors import HeadKVError, SettingsError


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    taken = tmp_path / "taken.json"
    taken.touch()
    with pytest.raises(HeadKVError, match="--force"):
        check_out(taken, force=False)
    assert check_out(taken, force=True) == taken
    with pytest.raises(HeadKVError, match="no folder"):
        check_out(tmp_path / "missing" / "s.json", force=False)


def test_a_free_name_in_the_current_folder_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_out(Path("llama-r2.json"), force=False) == Path("llama-r2.json")


@pytest.mark.parametrize(
    ("model", "name"),
    [("meta-llama/Llama-3.1-8B", "llama-3.1-8b"), ("/models/Own/", "own"), ("/", "model")],
)
def test_a_model_has_a_name(model: str, name: str) -> None:
    assert model_name(model) == name


def test_an_error_ends_a_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, readable_errors():
        raise SettingsError("budget=[3] is not allowed")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "headkv: error: budget=[3] is not allowed\n"

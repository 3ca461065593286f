# SPDX-License-Identifier: Apache-2.0
"""What the commands share."""

from pathlib import Path

import pytest
import typer

from headkv_vllm.errors import HeadKVError, SettingsError
from headkv_vllm.output.command_line import check_out, model_name, readable_errors


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


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_could_not_be_written_is_refused_before_the_work(
    tmp_path: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HeadKVError, match="is a folder"):
        check_out(tmp_path, force=force)
    with pytest.raises(HeadKVError, match="no folder"):
        check_out(tmp_path / ("x" * 300) / "s.json", force=force)
    # Root may write everywhere, so that a folder's mode would not do.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(HeadKVError, match="cannot be written to"):
        check_out(tmp_path / "s.json", force=force)

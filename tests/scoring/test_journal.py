# SPDX-License-Identifier: Apache-2.0
"""Partial results survive an interruption, and are never mixed with those of another run."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.errors import ScoringError
from headkv_vllm.scoring.journal import Journal, SampleResult

RUN = {"method": "r2", "num_samples": 3, "prompts": "ab"}


def result(index: int, value: float = 0.1) -> SampleResult:
    return SampleResult(index=index, share=1.0, said="yes", scores=((value, 1 / 3), (0.0, 1e-300)))


def test_results_come_back_exactly(tmp_path: Path) -> None:
    journal = Journal.resume(tmp_path / "j", RUN)
    written = [result(0), result(1, 0.1 + 0.2)]
    for each in written:
        journal = journal.append(each)
    again = Journal.resume(tmp_path / "j", RUN)
    again.check_integrity()
    assert again.results == journal.results == tuple(written)


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back(value: float) -> None:
    written = result(0, value)
    assert SampleResult.model_validate_json(written.model_dump_json()) == written


def test_what_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal.resume(path, RUN).append(result(0)).append(result(1))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = Journal.resume(path, RUN)
        kept.check_integrity()
        assert kept.results == (result(0), result(1))[: len(kept.results)]
        assert whole.startswith(path.read_bytes()) and path.read_bytes().endswith(b"\n")
    path.write_bytes(whole[:-1])
    assert len(Journal.resume(path, RUN).append(result(1)).results) == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize("other", [{**RUN, "method": "r"}, {**RUN, "num_samples": 4}, {}])
def test_another_run_is_told_apart(tmp_path: Path, other: dict[str, object]) -> None:
    Journal.resume(tmp_path / "j", RUN).append(result(0))
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(ScoringError, match=r"another run.*--restart"):
        Journal.resume(tmp_path / "j", other)
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"{}\n", b"nonsense\n", b'{"index":1,"share":1.0,"said":"","scores":[[1.0]]}\n']
)
def test_a_damaged_journal_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "j"
    Journal.resume(path, RUN)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ScoringError, match=r"damaged.*--restart"):
        Journal.resume(path, RUN)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """/dev/full takes the place of the journal once it is open for writing."""
    path = tmp_path / "j"
    journal = Journal.resume(path, RUN).append(result(0))
    whole = path.read_bytes()
    path.rename(tmp_path / "kept")
    os.symlink("/dev/full", path)
    with pytest.raises(ScoringError, match="No space left on device") as caught:
        journal.append(result(1))
    assert "\n" not in str(caught.value)
    path.unlink()
    (tmp_path / "kept").rename(path)
    assert path.read_bytes() == whole
    assert Journal.resume(path, RUN).append(result(1)).results == (result(0), result(1))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="cannot be kept"):
        Journal.resume(tmp_path / "missing" / "j", RUN)


def test_what_cannot_be_deleted_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="cannot be deleted: Is a directory"):
        Journal(tmp_path).remove()
    Journal(tmp_path / "missing").remove()

# SPDX-License-Identifier: Apache-2.0
"""Results on disk: what is there counts, what was cut short does not, another run's is refused."""

import json
from dataclasses import replace

import pytest

from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.cells import Cell
from headkv_vllm.evaluation.results import Result, ResultsFile, sample_digest
from headkv_vllm.evaluation.run_record import RunRecord
from headkv_vllm.evaluation.samples import Sample

CELL = Cell("needle/single", 512, "headkv", 64)


def sample(name="0", **changes):
    made = Sample(name, "needle/single", "a long text", "? key :", ("value",), 8, 512, 0.5)
    return replace(made, **changes)


def result(asked, score=1.0, cell=CELL, run="r"):
    return Result(
        run=run,
        task=cell.task,
        length=cell.length,
        policy=cell.policy,
        budget=cell.budget,
        id=asked.id,
        sample=sample_digest(asked),
        score=score,
        text='an "answer"\nof two lines\u2028and a separator',
        depth=asked.depth,
        num_prompt_tokens=512,
        num_output_tokens=7,
        kept_bytes=1000,
        full_bytes=4000,
        kept_tokens=128.5,
    )


def test_what_was_appended_is_found_again(tmp_path):
    path = tmp_path / "results.jsonl"
    first = ResultsFile.resume(path, "r")
    assert len(first) == 0 and first.find(CELL, sample()) is None
    for budget in (64, 0.5, None):
        cell = replace(CELL, budget=budget)
        first.append(result(sample(), cell=cell))
    again = ResultsFile.resume(path, "r")
    assert len(again) == 3
    for budget in (64, 0.5, None):
        cell = replace(CELL, budget=budget)
        assert again.find(cell, sample()) == result(sample(), cell=cell)
    assert again.find(replace(CELL, budget=128), sample()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"context": "another text"},
        {"question": "? other :"},
        {"answers": ("other",)},
        {"max_new_tokens": 9},
        {"choices": ("a", "b")},
        {"id": "1"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_sample_under_the_same_id_is_not_taken_for_it(tmp_path, changes):
    results = ResultsFile.resume(tmp_path / "results.jsonl", "r")
    results.append(result(sample()))
    assert results.find(CELL, sample(**changes)) is None


def test_a_line_that_was_cut_short_is_dropped_and_the_file_is_whole_again(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    for path in (whole, cut):
        results = ResultsFile.resume(path, "r")
        results.append(result(sample("0")))
        results.append(result(sample("1"), score=0.25))
    cut.write_bytes(cut.read_bytes()[:-20])
    resumed = ResultsFile.resume(cut, "r")
    assert resumed.find(CELL, sample("0")) is not None
    assert resumed.find(CELL, sample("1")) is None
    resumed.append(result(sample("1"), score=0.25))
    assert cut.read_bytes() == whole.read_bytes()


def test_a_damaged_line_is_refused_with_its_number(tmp_path):
    path = tmp_path / "results.jsonl"
    ResultsFile.resume(path, "r").append(result(sample()))
    good = path.read_text()
    document = json.loads(good)
    for bad in ("{", json.dumps({**document, "score": 2}), json.dumps({**document, "more": 1})):
        path.write_text(good + bad + "\n" + good)
        with pytest.raises(EvaluationError, match="damaged in line 2") as raised:
            ResultsFile.resume(path, "r")
        assert "\n" not in str(raised.value)


def test_results_of_another_run_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    ResultsFile.resume(path, "r").append(result(sample()))
    with pytest.raises(EvaluationError, match="another run in line 1"):
        ResultsFile.resume(path, "s")


def test_a_file_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="Is a directory"):
        ResultsFile.resume(tmp_path, "r")
    with pytest.raises(EvaluationError, match="No such file"):
        ResultsFile(tmp_path / "no" / "results.jsonl", "r").append(result(sample()))


class TestRunRecord:
    def record(self, **changes):
        depends_on = {"model": "m", "seed": 0, "settings": {"window": 8}, **changes}
        return RunRecord.now(depends_on, "headkv eval m", {"tasks": ["a"]}, {})

    def test_the_same_run_goes_on_and_its_record_is_renewed(self, tmp_path):
        self.record().write_to(tmp_path / "new")
        later = RunRecord.now(self.record().answers_depend_on, "other words", {}, {})
        later.write_to(tmp_path / "new")
        written = RunRecord.model_validate_json((tmp_path / "new/run.json").read_bytes())
        assert written == later and written.digest == self.record().digest
        assert written.versions["headkv-vllm"] and written.machine["system"]
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.json"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seed": 1}, "with seed 0 instead of 1"),
            ({"settings": {}}, r"with settings {'window': 8} instead of {}"),
            ({"extra": True}, "with extra None instead of True"),
        ],
    )
    def test_another_run_is_told_apart_by_what_differs(self, tmp_path, changes, message):
        self.record().write_to(tmp_path)
        other = self.record(**changes)
        assert other.digest != self.record().digest
        with pytest.raises(EvaluationError, match=message) as raised:
            other.write_to(tmp_path)
        assert "\n" not in str(raised.value)

    def test_a_file_that_is_no_record_is_not_written_over(self, tmp_path):
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(EvaluationError, match="not a record of a run"):
            self.record().write_to(tmp_path)
        assert (tmp_path / "run.json").read_text() == "{}"

    def test_a_folder_that_cannot_be_made_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(EvaluationError, match="cannot be used"):
            self.record().write_to(tmp_path / "file" / "out")

# SPDX-License-Identifier: Apache-2.0
"""The report and the pictures of made-up results whose numbers are worked out by hand."""

import numpy as np
import pytest

from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.plots import depth_scores, write_plots
from headkv_vllm.evaluation.report import report, table, write_report
from headkv_vllm.evaluation.results import Result
from headkv_vllm.evaluation.run_record import RunRecord
from headkv_vllm.evaluation.summary import bootstrap_interval, by_cell, summarise

KIB = 1024
SEED = 3


def made_up(
    scores,
    policy="full",
    budget=None,
    kept=(64 * KIB,),
    full=64 * KIB,
    kept_tokens=1024,
    length=1024,
    task="needle/single",
    depths=(None,),
):
    """A cell's results; kept bytes and depths go round."""
    return [
        Result(
            run="r",
            task=task,
            length=length,
            policy=policy,
            budget=budget,
            id=str(i),
            sample=f"{task} {length} {i}",
            score=score,
            text="",
            depth=depths[i % len(depths)],
            num_prompt_tokens=length,
            num_output_tokens=7 + i,
            kept_bytes=kept[i % len(kept)],
            full_bytes=full,
            kept_tokens=kept_tokens,
        )
        for i, score in enumerate(scores)
    ]


def record(**changes):
    depends_on = {
        "model": "/models/tiny",
        "seed": SEED,
        "block_size": 16,
        "dtype": "auto",
        "settings": {},
        "chat": False,
        "question_agnostic": False,
        "stock": True,
        "url": None,
    }
    sources = {"headkv": "r2 scores of tiny"}
    return RunRecord.now({**depends_on, **changes}, "headkv eval tiny -n 4", {}, sources)


# Right: 3 of 4 = 75 %. Output tokens: 7, 8, 9, 10, mean 8.5. All of 64 KiB kept.
FULL = made_up([1.0, 1.0, 1.0, 0.0])
# Right: 1 + 0 + 0.5 + 0.5 = 2 of 4 = 50 %; less full: 0, -1, -0.5, +0.5, mean -0.25.
# Kept: 8, 24, 8, 24 KiB, mean 16, which is a quarter of 64.
HEADKV = made_up([1.0, 0.0, 0.5, 0.5], "headkv", 64, (8 * KIB, 24 * KIB), kept_tokens=128)
# All wrong: headkv has 0.5 more on average.
UNIFORM = made_up([0.0] * 4, "uniform", 64, (16 * KIB,), kept_tokens=128)


def cells_of(line):
    return [part.strip() for part in line.strip("|").split("|")]


def test_a_row_says_what_its_samples_say():
    lines = table(summarise(FULL + HEADKV + UNIFORM, SEED))
    header, rule, full, headkv, uniform = map(cells_of, lines)
    assert {len(header), len(rule), len(full), len(headkv)} == {12}
    interval = bootstrap_interval([1.0, 1.0, 1.0, 0.0], SEED)
    bounds = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    assert full == [
        *("needle/single", "1,024", "full", "-", f"75.0 ({bounds})", "-", "-", "4"),
        *("1,024.0", "100.0", "64.0", "8.5"),
    ]
    less = bootstrap_interval([0.0, -1.0, -0.5, 0.5], SEED)
    bounds = f"{100 * less.low:+.1f} to {100 * less.high:+.1f}"
    assert headkv[2:4] == ["headkv", "64"] and headkv[4].startswith("50.0 (")
    assert headkv[5] == f"-25.0 ({bounds})"
    more = bootstrap_interval([1.0, 0.0, 0.5, 0.5], SEED)
    assert more.low > 0 and uniform[6] == "-"
    assert headkv[6] == f"+50.0 ({100 * more.low:+.1f} to {100 * more.high:+.1f}) *"
    assert headkv[7:] == ["4", "128.0", "12.5", "16.0", "8.5"]


def test_differences_are_of_the_same_samples_only():
    """Of another length, or of another task, there is nothing to compare with."""
    elsewhere = made_up([1.0], "headkv", 64, length=512) + made_up([1.0], "headkv", 64, task="b")
    assert [row.against_full for row in summarise(FULL + elsewhere, SEED)] == [None] * 3
    (_, fewer) = summarise(FULL[:2] + HEADKV, SEED)
    assert fewer.n == 4 and fewer.against_full.mean == pytest.approx((0 - 1) / 2)


def test_unknown_memory_is_no_number(tmp_path):
    given = made_up([1.0, 0.0], "given", None, (None,), None, None, length=0)
    rows = summarise(given, SEED)
    assert cells_of(table(rows)[2])[1:4] == ["whole", "given", "-"]
    assert cells_of(table(rows)[2])[8:11] == ["-", "-", "-"]
    text = report(rows, record(url="http://host:1"))
    assert "what the server at http://host:1 does" in text and "Kept KiB" not in text
    assert write_plots(given, rows, tmp_path) == []


def test_the_report_names_its_command_and_what_to_know(tmp_path):
    rows = summarise(FULL + HEADKV, SEED)
    path = write_report(rows, record(), tmp_path)
    text = path.read_text()
    assert text.startswith("# /models/tiny\n\n| task |")
    assert text.endswith("```sh\nheadkv eval tiny -n 4\n```\n")
    for words in ("by plan", "Seed 3, block size 16", "headkv: r2 scores of tiny", "forced output"):
        assert (words in text) == (words != "forced output"), words
    assert "is stock vLLM" in text and "chat" not in text
    agnostic = report(rows, record(question_agnostic=True))
    assert "before the question was known" in agnostic and "forced output" in agnostic
    other = report(rows, record(chat=True, stock=False))
    assert "Asked in the tokenizer's chat format" in other and "with budget 0" in other


def test_a_report_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "report.md").mkdir()
    with pytest.raises(EvaluationError, match="cannot be written"):
        write_report(summarise(FULL, SEED), record(), tmp_path)


class TestPictures:
    def test_one_for_each_task(self, tmp_path):
        results = FULL + HEADKV + made_up([0.5, 1.0], task="ruler/vt")
        paths = write_plots(results, summarise(results, SEED), tmp_path)
        names = ["accuracy-needle-single.png", "accuracy-ruler-vt.png"]
        assert [path.name for path in paths] == names
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)

    def test_several_lengths_have_pictures_of_their_own_and_depths_one(self, tmp_path):
        results = [
            *made_up([1.0, 0.0], depths=(0.25, 0.75), length=512),
            *made_up([1.0, 1.0], depths=(0.25, 0.75), length=1024),
        ]
        paths = write_plots(results, summarise(results, SEED), tmp_path)
        assert [path.name for path in paths] == [
            "accuracy-needle-single-512.png",
            "accuracy-needle-single-1024.png",
            "depth-needle-single-full.png",
        ]

    def test_few_depths_stand_as_they_are(self):
        short = made_up([1.0, 0.0, 0.0], depths=(0.25, 0.75, 0.75), length=512)
        long = made_up([0.5], depths=(0.75,), length=1024)
        names, scores = depth_scores(list(by_cell(short + long).values()))
        assert names == ["25%", "75%"]
        np.testing.assert_array_equal(scores, [[1, np.nan], [0, 0.5]])

    def test_many_depths_are_put_into_ten_parts(self):
        """0, 1/11 and 1/11 of 1 ... 1: the last part holds 10/11 and 1."""
        depths = tuple(i / 11 for i in range(12))
        cell = made_up([i / 12 for i in range(12)], depths=depths)
        names, scores = depth_scores([cell, cell])
        assert names[0] == "0-10%" and names[-1] == "90-100%" and len(names) == 10
        # Ten times i/11, rounded down: 0 0 1 2 3 4 5 6 7 8 9 and, for 1, the last part.
        expected = [0.5, 2, 3, 4, 5, 6, 7, 8, 9, 10.5]
        np.testing.assert_allclose(12 * scores, np.array([expected, expected]).T)

    @pytest.mark.parametrize("depths", [(None,), (0.5,)])
    def test_one_length_or_one_depth_makes_no_map(self, depths):
        assert depth_scores([made_up([1.0, 0.0], depths=depths)] * 2) is None
        assert depth_scores([made_up([1.0, 0.0], depths=(0.2, 0.4))]) is None

    def test_one_that_cannot_be_written_is_refused(self, tmp_path):
        (tmp_path / "accuracy-needle-single.png").mkdir()
        with pytest.raises(EvaluationError, match="cannot be written"):
            write_plots(FULL, summarise(FULL, SEED), tmp_path)

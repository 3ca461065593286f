# SPDX-License-Identifier: Apache-2.0
"""Benchmarks from files in their published formats."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headkv_vllm.errors import HeadKVError, SamplesError, SettingsError
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.evaluation.tasks import TASKS
from headkv_vllm.evaluation.tasks.longbench import DATA_SETS, LONGBENCH_TASKS
from tests.scoring.small_models import small_tokenizer

TOKENIZER = small_tokenizer()


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def read(name: str, data: Path, n: int = 9, length: int = 0, seed: int = 1) -> list[Sample]:
    return list(TASKS[name].samples(n, length, seed, TOKENIZER, data))


def longbench_row(index: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "input": f"Question {index}?",
        "context": f"Text {index}.",
        "answers": [f"answer {index}", "yes"],
        "length": 2,
        "dataset": "qasper",
        "language": "en",
        "all_classes": None,
        "_id": f"id{index}",
    }
    return row | changes


def longbench_v2_row(index: int = 0) -> dict[str, Any]:
    return {
        "_id": f"v{index}",
        "domain": "Code",
        "sub_domain": "Repositories",
        "difficulty": "easy",
        "length": "short",
        "question": "Which one?",
        **{f"choice_{letter}": f"choice {letter.lower()}" for letter in "ABCD"},
        "answer": "C",
        "context": f"Text {index}.",
    }


PAIRS = [{"Q": "Who?", "A": "Ada", "S": ["s"]}, {"Q": "What's that?", "A": "A loom", "S": ["s"]}]


def loogle_row(**changes: Any) -> dict[str, Any]:
    # The published files hold the list as Python writes it.
    return {"input": "Text.", "title": "t", "qa_pairs": repr(PAIRS), "output": "none"} | changes


def babilong_row(index: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "input": f"Mary went to the garden. Book text {index}.",
        "question": "Where is Mary? ",
        "target": "garden",
    }
    return row | changes


class TestLongBench:
    def test_a_row_becomes_a_sample(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "longbench" / "qasper.jsonl", [longbench_row()])
        [sample] = read("longbench/qasper", tmp_path)
        assert sample.id == "id0"
        assert sample.context.endswith("Text 0.")
        assert "Question 0?" in sample.question and "Question 0?" not in sample.context
        assert sample.answers == ("answer 0", "yes")
        assert (sample.max_new_tokens, sample.length, sample.choices) == (128, 0, ())
        assert METRICS[TASKS["longbench/qasper"].metric](sample, "Yes.") == 1

    def test_classes_come_along(self, tmp_path: Path) -> None:
        row = longbench_row(answers=["Date"], all_classes=["Date", "Person"])
        write_lines(tmp_path / "longbench" / "data" / "trec.jsonl", [row])
        [sample] = read("longbench/trec", tmp_path)
        assert sample.choices == ("Date", "Person")
        assert METRICS[TASKS["longbench/trec"].metric](sample, "Date\nPerson") == 1

    @pytest.mark.parametrize("folder", ["longbench/data", "longbench/config", "longbench"])
    def test_the_authors_prompts_and_lengths_are_taken(self, tmp_path: Path, folder: str) -> None:
        write_lines(tmp_path / "longbench" / "data" / "qasper.jsonl", [longbench_row()])
        prompts = {"qasper": "Read {context} and say: {input} {curly}\nAnswer:", "trec": "-"}
        for name, config in (("prompt", prompts), ("maxlen", {"qasper": 17})):
            write_lines(tmp_path / folder / f"dataset2{name}.json", [config])
        [sample] = read("longbench/qasper", tmp_path)
        assert sample.context == "Read Text 0."
        assert sample.question == " and say: Question 0? {curly}\nAnswer:"
        assert sample.max_new_tokens == 17

    def test_a_template_without_context_is_refused(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "qasper.jsonl", [longbench_row()])
        write_lines(tmp_path / "dataset2prompt.json", [{"qasper": "{input}"}])
        with pytest.raises(SamplesError, match=r"prompt\.json: qasper: must have \{context\} once"):
            read("longbench/qasper", tmp_path)

    def test_long_texts_lose_their_middle(self, tmp_path: Path) -> None:
        text = "start " + "x" * 2000 + " end"
        write_lines(tmp_path / "qasper.jsonl", [longbench_row(context=text)])
        [whole] = read("longbench/qasper", tmp_path)
        [cut] = read("longbench/qasper", tmp_path, length=900)
        assert text in whole.context
        assert len(TOKENIZER.encode(cut.prompt)) == cut.length == 900
        assert cut.question == whole.question
        half = len(cut.context) // 2
        assert whole.context.startswith(cut.context[:half])
        assert whole.context.endswith(cut.context[half + 1 :])

    def test_a_question_longer_than_the_length_is_named(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "qasper.jsonl", [longbench_row()])
        with pytest.raises(SamplesError, match="question id0 alone has more than 5 tokens"):
            read("longbench/qasper", tmp_path, length=5)

    def test_every_data_set_has_its_place_for_the_context(self) -> None:
        for data_set in DATA_SETS:
            assert data_set.template.count("{context}") == 1, data_set.name
            assert data_set.template.format(context="", input="") != data_set.template

    @pytest.mark.skipif(find_spec("jieba") is not None, reason="jieba is installed")
    def test_chinese_sets_that_need_jieba_are_refused(self, tmp_path: Path) -> None:
        needing = [task for task in LONGBENCH_TASKS if task.metric.endswith(("f1_zh", "rouge_zh"))]
        assert len(needing) == 3
        for task in needing:
            write_lines(tmp_path / f"{task.data_set.name}.jsonl", [longbench_row()])
            with pytest.raises(SettingsError, match="pip install jieba"):
                task.samples(1, 0, 1, TOKENIZER, tmp_path)


class TestLongBenchV2:
    @pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
    def test_a_row_becomes_a_sample(self, tmp_path: Path, name: str) -> None:
        path = write_lines(tmp_path / "longbench_v2" / name, [longbench_v2_row()])
        if name == "data.json":
            path.write_text(json.dumps([longbench_v2_row()], indent=2))
        [sample] = read("longbench_v2/all", tmp_path)
        assert (sample.id, sample.answers) == ("v0", ("C",))
        assert sample.context.endswith("Text 0.")
        assert "(C) choice c\n(D) choice d" in sample.question
        assert METRICS["choice_letter"](sample, "The correct answer is (C).") == 1
        assert METRICS["choice_letter"](sample, sample.question) == 0


class TestLooGLE:
    @pytest.mark.parametrize("pairs", [repr(PAIRS), json.dumps(PAIRS), PAIRS])
    def test_each_question_is_a_sample(self, tmp_path: Path, pairs: Any) -> None:
        rows = [loogle_row(qa_pairs=pairs), loogle_row(input="Other.", qa_pairs=pairs)]
        write_lines(tmp_path / "loogle" / "shortdep_qa.jsonl", rows)
        samples = sorted(read("loogle/shortdep_qa", tmp_path), key=lambda sample: sample.id)
        assert [sample.id for sample in samples] == ["0-0", "0-1", "1-0", "1-1"]
        assert samples[1].answers == ("A loom",)
        assert "What's that?" in samples[1].question
        assert samples[2].context.endswith("Other.")
        assert METRICS[TASKS["loogle/shortdep_qa"].metric](samples[1], "the loom") == 1

    def test_a_summary_is_a_sample(self, tmp_path: Path) -> None:
        row = loogle_row(qa_pairs="none", output="It says a lot.")
        write_lines(tmp_path / "longdep_summarization.jsonl", [row])
        [sample] = read("loogle/longdep_summarization", tmp_path)
        assert sample.answers == ("It says a lot.",)
        score = METRICS[TASKS["loogle/longdep_summarization"].metric](sample, "It says a lot.")
        assert score == pytest.approx(1)

    def test_a_file_without_questions_is_refused(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "longdep_qa.jsonl", [loogle_row(qa_pairs="none")])
        with pytest.raises(SamplesError, match="has no question with an answer"):
            read("loogle/longdep_qa", tmp_path)


class TestBABILong:
    @pytest.mark.parametrize("name", ["data/qa1/1k.json", "qa1/1k.json", "1k/qa1.json"])
    @pytest.mark.parametrize("length", [1000, 1024])
    def test_the_length_chooses_the_file(self, tmp_path: Path, name: str, length: int) -> None:
        path = write_lines(tmp_path / "babilong" / name, [])
        path.write_text(json.dumps([babilong_row(), babilong_row(1)]))
        first, second = sorted(read("babilong/qa1", tmp_path, length=length), key=lambda s: s.id)
        assert (first.id, second.id, first.length) == ("1k-0", "1k-1", length)
        assert first.context.endswith("Book text 0.")
        assert "Question: Where is Mary?\n" in first.question
        assert METRICS["labels"](first, "Mary is in the garden.") == 1
        assert METRICS["labels"](first, "In the kitchen or the garden.") == 0

    def test_labels_of_the_question_count_for_nothing(self, tmp_path: Path) -> None:
        row = babilong_row(question="Where was Mary before the kitchen?")
        write_lines(tmp_path / "babilong" / "qa3" / "0k.json", [row])
        [sample] = read("babilong/qa3", tmp_path)
        assert "kitchen" not in sample.choices and "garden" in sample.choices
        assert METRICS["labels"](sample, "before the kitchen, in the garden") == 1

    def test_other_lengths_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="length is 1500, BABILong has 0, 1024"):
            read("babilong/qa1", tmp_path, length=1500)

    def test_millions(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "babilong" / "qa1" / "1M.json", [babilong_row()])
        for length in (10**6, 2**20):
            assert len(read("babilong/qa1", tmp_path, length=length)) == 1


class TestAnyFile:
    def test_the_seed_draws_and_a_lower_n_gives_the_first(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "qasper.jsonl", [longbench_row(i) for i in range(40)])
        all_of_them, some, other = (
            [sample.id for sample in read("longbench/qasper", tmp_path, n=n, seed=seed)]
            for n, seed in ((99, 1), (7, 1), (7, 2))
        )
        assert sorted(all_of_them) == sorted(f"id{i}" for i in range(40))
        assert some == all_of_them[:7] != other

    @pytest.mark.parametrize(
        ("name", "looked_for"),
        [
            ("longbench/qasper", "longbench/qasper.jsonl"),
            ("longbench_v2/all", "longbench_v2/data.json"),
            ("loogle/longdep_qa", "loogle/longdep_qa.jsonl"),
            ("babilong/qa2", "babilong/qa2/0k.json"),
        ],
    )
    def test_a_missing_file_is_named(self, tmp_path: Path, name: str, looked_for: str) -> None:
        with pytest.raises(SamplesError, match=f"task '{name}' has no data: .*{looked_for}"):
            TASKS[name].samples(1, 0, 1, TOKENIZER, tmp_path)
        with pytest.raises(SamplesError, match=f"that has {looked_for} with --data"):
            TASKS[name].samples(1, 0, 1, TOKENIZER, None)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "has no rows"),
            ("{}\n", "row 1: input is missing"),
            (json.dumps(longbench_row()) + "\n{", r"qasper\.jsonl, line 2: not JSON"),
            (json.dumps(longbench_row(answers=[])), "row 1: answers is .* at least 1"),
            (json.dumps(longbench_row(context=3)), "row 1: context is 3, .*string"),
            ("3", "row 1: it is 3, expected a JSON object"),
            ("\udcff", "is not UTF-8"),
        ],
    )
    def test_a_damaged_file_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "qasper.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(SamplesError, match=message) as caught:
            TASKS["longbench/qasper"].samples(1, 0, 1, TOKENIZER, tmp_path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", sorted(TASKS))
    def test_numbers_below_zero_are_refused_by_every_task(self, name: str, tmp_path: Path) -> None:
        for n, length, seed in ((-1, 1000, 1), (1, -1000, 1), (1, 1000, -1)):
            with pytest.raises(HeadKVError, match="is -1"):
                TASKS[name].samples(n, length, seed, TOKENIZER, tmp_path)

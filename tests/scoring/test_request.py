# SPDX-License-Identifier: Apache-2.0
"""Every option is checked before a model is loaded."""

from pathlib import Path

import pytest

from headkv_vllm.errors import HeadKVError
from headkv_vllm.scoring.attention_scores import METHODS
from headkv_vllm.scoring.measuring import ANSWERS
from headkv_vllm.scoring.request import parse_answers, parse_method, parse_source, parse_template
from headkv_vllm.scoring.sources import BuiltInSource, FileSource


def test_a_number_means_built_in_samples(tmp_path):
    source = parse_source("grad", "5", None, None, None)
    assert isinstance(source, BuiltInSource)
    assert (source.per_length, source.lengths, source.seed) == (5, (512, 1024, 2048), 0)
    (tmp_path / "text.txt").write_text("One sentence. Another one.")
    source = parse_source("grad", "5", "64, 128", 3, tmp_path / "text.txt")
    assert (source.lengths, source.seed) == ((64, 128), 3)
    assert "text.txt" in source.description


def test_anything_else_means_a_file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"context": "a b", "question": "c", "answer": "b"}\n')
    source = parse_source("r2", str(path), None, None, None)
    assert isinstance(source, FileSource)
    assert [sample.answer for sample in source.samples("r2", len, 0)] == ["b"]
    assert source.description.startswith("own.jsonl, sha256 ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("0", None, None, None), "--samples is '0', allowed are integers from 1 to 10000"),
        (("10001", None, None, None), "--samples is '10001', allowed"),
        (("\u00b2", None, None, None), "--samples is '\u00b2', allowed"),
        (("5", "9" * 5000, None, None), "--lengths is '999"),
        (("-3", None, None, None), "--samples is '-3', allowed are integers from 1"),
        (("5", "64,x", None, None), "--lengths is 'x', allowed are integers from 1"),
        (("5", "", None, None), "--lengths is '', allowed are integers from 1"),
        (("5", None, -1, None), "--seed is '-1', allowed are integers from 0"),
        (("own.jsonl", "64", None, None), "--lengths is for built-in samples"),
        (("own.jsonl", None, 0, None), "--seed is for built-in samples"),
        (("own.jsonl", None, None, Path("h")), "--haystack is for built-in samples"),
    ],
)
def test_bad_sources(arguments, message):
    with pytest.raises(HeadKVError) as caught:
        parse_source("grad", *arguments)
    assert message in str(caught.value)


def test_methods_are_known_by_name():
    assert [parse_method(method) for method in METHODS] == list(METHODS)
    with pytest.raises(HeadKVError, match="--method is 'r3', allowed are grad, r2, r"):
        parse_method("r3")


def test_answers_are_known_by_name():
    assert [parse_answers(answers) for answers in ANSWERS] == ["forced", "generated"]
    with pytest.raises(HeadKVError, match="--answers is 'own', allowed are forced, generated"):
        parse_answers("own")


def test_only_gradients_need_no_evidence(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"context": "a b", "question": "c", "answer": "d"}\n')
    (sample,) = parse_source("grad", str(path), None, None, None).samples("grad", len, 0)
    assert (sample.answer, sample.evidence) == ("d", ())
    for method in ("r2", "r"):
        with pytest.raises(HeadKVError, match="line 1: the answer 'd' is not in the context, so"):
            parse_source(method, str(path), None, None, None)


def test_a_template_needs_its_places():
    assert parse_template("{context} {question}", chat=True).chat
    with pytest.raises(HeadKVError, match="question"):
        parse_template("{context}", chat=False)

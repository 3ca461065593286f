# SPDX-License-Identifier: Apache-2.0
"""Samples files: what is read from them, and what is refused."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.errors import SamplesError
from headkv_vllm.scoring import samples as samples_module
from headkv_vllm.scoring.samples import ScoreSample, merge, occurrences, read_samples

LINE = {"context": "The cat is in the hat.", "question": "Where is it?", "answer": "in the hat"}
SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda s: (s[0], sum(s))))


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def evidence(folder: Path, value: Any, **other: str) -> tuple[tuple[int, int], ...]:
    path = write(folder / "s.jsonl", {**LINE, **other, "evidence": value})
    return read_samples(path)[0].evidence


def test_lines_become_samples_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", LINE, "", "  ", {**LINE, "answer": "hat"}, "")
    expected = tuple(
        ScoreSample(LINE["context"], LINE["question"], answer, (span,))
        for answer, span in [("in the hat", (11, 21)), ("hat", (18, 21))]
    )
    assert read_samples(path) == expected


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    line = json.dumps({**LINE, "context": "\u00e9\u2028in the hat"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    assert [sample.evidence for sample in read_samples(path)] == [((2, 12),)] * 2


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        ([4, 7], ((4, 7),)),
        ("The cat", ((0, 7),)),
        (["hat", [0, 3]], ((0, 3), (18, 21))),
        ([[4, 9], [0, 5], "hat."], ((0, 9), (18, 22))),
        ([[0, 22]], ((0, 22),)),
        (None, ((11, 21),)),
    ],
)
def test_evidence_is_spans_or_texts(tmp_path: Path, value: Any, spans: Any) -> None:
    assert evidence(tmp_path, value) == spans


def test_without_evidence_the_answer_is_found_everywhere(tmp_path: Path) -> None:
    context = "no, I know: No or no."
    assert evidence(tmp_path, None, context=context, answer="no") == ((0, 2), (18, 20))


def test_an_answer_inside_a_word_counts_when_it_is_no_word_anywhere(tmp_path: Path) -> None:
    assert evidence(tmp_path, None, context="knows, know", answer="now") == ((1, 4), (8, 11))


@given(spans=SPANS)
def test_merged_spans_hold_the_same_characters(spans: list[tuple[int, int]]) -> None:
    merged = merge(spans)
    assert {c for span in merged for c in range(*span)} == {c for s in spans for c in range(*s)}
    assert all(left[1] < right[0] for left, right in pairwise(merged))


@given(text=st.text("ab"), part=st.text("ab", min_size=1))
def test_occurrences_are_all_there_are(text: str, part: str) -> None:
    plain = [(i, i + len(part)) for i in range(len(text)) if text.startswith(part, i)]
    assert list(occurrences(text, part)) == plain


BAD_LINES: dict[str, tuple[dict[str, Any] | str, str]] = {
    "no JSON": ("{'context'}", "it is not valid JSON"),
    "half a character": ('{"context": "\\ud800"}', "it is not valid JSON"),
    "a list": ("[1]", "it is [1], expected a JSON object"),
    "no answer": ({"context": "x", "question": "y"}, "answer is missing"),
    "misspelt": (
        {"context": "x", "question": "y", "anser": "x"},
        "'anser' is not a key, allowed are context, question, answer, evidence",
    ),
    "a number": ({**LINE, "question": 3}, "question is 3, expected a text"),
    "blank": ({**LINE, "answer": " \n"}, "answer is ' \\n', expected a text"),
    "absent answer": ({**LINE, "answer": "dog"}, "'dog' is not in the context, so evidence is"),
    "absent text": ({**LINE, "evidence": "dog"}, "'dog' is 0 times in the context"),
    "ambiguous": ({**LINE, "evidence": ["cat", "at"]}, "'at' is 2 times in the context"),
    "empty text": ({**LINE, "evidence": ""}, "'' is 0 times"),
    "empty list": ({**LINE, "evidence": []}, "evidence is an empty list"),
    "out of range": (
        {**LINE, "evidence": [20, 23]},
        "[20, 23], allowed are 0 <= start < end <=",
    ),
    "negative": ({**LINE, "evidence": [-1, 3]}, "evidence is [-1, 3]"),
    "empty span": ({**LINE, "evidence": [3, 3]}, "evidence is [3, 3]"),
    "backwards": ({**LINE, "evidence": [[4, 2]]}, "evidence is [4, 2]"),
    "three numbers": ({**LINE, "evidence": [1, 2, 3]}, "expected a text from the context, a span"),
    "floats": ({**LINE, "evidence": [0.0, 2.0]}, "expected a text from the context, a span"),
    "an object": ({**LINE, "evidence": {}}, "evidence is {}, expected a text from the context"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named(tmp_path: Path, line: dict[str, Any] | str, reason: str) -> None:
    path = write(tmp_path / "x.jsonl", LINE, "", line, LINE)
    with pytest.raises(SamplesError) as caught:
        read_samples(path)
    assert str(caught.value).startswith(f"samples file {str(path)!r}, line 3: ")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "x").write_bytes(contents)
    with pytest.raises(SamplesError, match="is empty, expected a JSON object per line"):
        read_samples(tmp_path / "x")


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(json.dumps(LINE).encode() + b"\n\xff\xfe")
    with pytest.raises(SamplesError, match="line 2: it is not UTF-8"):
        read_samples(tmp_path / "x")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as stream:
        os.truncate(stream.fileno(), samples_module.MAX_FILE_BYTES + 1)  # holds nothing on disk
    with pytest.raises(SamplesError, match="has 1073741825 bytes, allowed are 1073741824"):
        read_samples(tmp_path / "x")


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SamplesError, match=r"(cannot be read: No such file|is not a regular file)"):
        read_samples(tmp_path / name)

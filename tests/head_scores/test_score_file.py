# SPDX-License-Identifier: Apache-2.0
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores import file as score_file_module
from headkv_vllm.head_scores.file import ScoreFile, check_fits, read_score_file, write_score_file


def _refused(path):
    with pytest.raises(ScoreFileError) as caught:
        read_score_file(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_a_written_file_is_read_back(score_file, tmp_path):
    path = tmp_path / "scores.json"
    write_score_file(path, score_file)
    assert read_score_file(path) == score_file
    assert np.array_equal(read_score_file(path).values, np.array(score_file.scores))


def test_the_same_contents_give_the_same_bytes_one_layer_per_line(score_file, tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_score_file(first, score_file)
    write_score_file(second, read_score_file(first))
    assert first.read_bytes() == second.read_bytes()
    rows = [line.strip().rstrip(",") for line in first.read_text().splitlines()]
    assert all(json.dumps(row) in rows for row in json.loads(first.read_text())["scores"])


def test_writing_replaces_the_file_and_leaves_nothing_else(score_file, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with open(path) as reader:
        write_score_file(path, score_file)
        assert reader.read() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]
    assert read_score_file(path) == score_file


def test_a_failed_write_leaves_the_old_file(score_file, tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    path.write_text("old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ScoreFileError, match="No space left on device"):
        write_score_file(path, score_file)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_writing_into_a_missing_folder_is_refused(score_file, tmp_path):
    path = tmp_path / "none" / "scores.json"
    with pytest.raises(ScoreFileError) as caught:
        write_score_file(path, score_file)
    assert str(path) in str(caught.value)
    assert "No such file" in str(caught.value)


def _set(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(document):
        for key in keys:
            document = document[key]
        document[last] = value

    return change


def _delete(*keys):
    *keys, last = keys

    def change(document):
        for key in keys:
            document = document[key]
        del document[last]

    return change


def _rename(old, new):
    def change(document):
        document[new] = document.pop(old)

    return change


BAD_DOCUMENTS = {
    "version 2": (_set("schema_version", 2), "schema_version is 2, expected 1"),
    "version as text": (_set("schema_version", "1"), "schema_version is '1', expected 1"),
    "no version": (_delete("schema_version"), "schema_version is missing"),
    "no scores": (_delete("scores"), "scores is missing"),
    "no identity": (_delete("model", "identity"), "model.identity is missing"),
    "unknown key": (_set("extra", 1), "'extra' is not a key"),
    "misspelt key": (_rename("method", "methid"), "'methid' is not a key"),
    "unknown key inside": (_set("provenance", "sed", 1), "'provenance.sed' is not a key"),
    "another format": (_set("provenance", 1), "provenance is 1, expected an object"),
    "bad fingerprint": (
        _set("model", "identity", "fingerprint", "x"),
        "model.identity.fingerprint",
    ),
    "layer missing": (_delete("scores", 2), "scores has 2 layers, expected num_layers 3"),
    "head missing": (_delete("scores", 1, 3), "scores[1] has 3 heads, expected num_heads 4"),
    "flat": (_set("scores", [1.0, 2.0]), "scores[0] is 1.0, expected a valid"),
    "not a number": (_set("scores", 1, 2, float("nan")), "scores[1][2] is nan, expected a finite"),
    "infinite": (_set("scores", 1, 2, float("inf")), "scores[1][2] is inf, expected a finite"),
    "text": (_set("scores", 1, 2, "1"), "scores[1][2] is '1', expected a valid number"),
    "null": (_set("scores", 1, 2, None), "scores[1][2] is None, expected a valid number"),
    "negative": (
        _set("scores", 1, 2, -0.5),
        "scores[1][2] is -0.5, expected greater than or equal",
    ),
    "all zero": (_set("scores", [[0] * 4] * 3), "expected at least one above zero"),
}


@pytest.mark.parametrize(("change", "named"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS.keys())
def test_a_document_against_the_schema_is_refused(score_file, tmp_path, change, named):
    document = score_file.model_dump(mode="json")
    change(document)
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(document))
    assert named in _refused(path)


@pytest.mark.parametrize(
    ("contents", "named"),
    [
        (b"", "not valid JSON"),
        (b"\x80\x04]q\x00.", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "the document is [1, 2], expected a JSON object"),
        (b"null", "the document is None, expected a JSON object"),
    ],
    ids=["empty", "pickle", "deep", "list", "null"],
)
def test_other_contents_are_refused(tmp_path, contents, named):
    path = tmp_path / "scores.json"
    path.write_bytes(contents)
    assert named in _refused(path)


def test_an_overflowing_number_is_refused(score_file, tmp_path):
    path = tmp_path / "scores.json"
    write_score_file(path, score_file)
    number = json.dumps(score_file.scores[1][2])
    path.write_text(path.read_text().replace(number, "1e999"))
    assert "scores[1][2] is inf, expected a finite number" in _refused(path)


@settings(deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(tmp_path_factory, part):
    path = tmp_path_factory.mktemp("cut") / "scores.json"
    whole = SAMPLE.model_dump_json().encode()
    path.write_bytes(whole[: int(part * len(whole))])
    assert "not valid JSON" in _refused(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "No such file" in _refused(tmp_path / "none.json")


def test_a_folder_is_refused(tmp_path):
    assert "not a regular file" in _refused(tmp_path)


def test_a_file_too_large_is_refused_before_it_is_read(score_file, tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_score_file(path, score_file)
    monkeypatch.setattr(score_file_module, "MAX_FILE_BYTES", path.stat().st_size - 1)
    assert f"has {path.stat().st_size} bytes, expected at most" in _refused(path)


def test_a_file_fits_the_model_it_was_made_for(score_file, identity, tmp_path):
    check_fits(score_file, identity, tmp_path / "scores.json")
    quantised = identity.model_copy(update={"fingerprint": "0" * 64})
    check_fits(score_file, quantised, tmp_path / "scores.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_layers": 4}, "num_layers 3, this model has 4"),
        ({"num_kv_heads": 4}, "num_kv_heads 2, this model has 4"),
        ({"architecture": "X"}, "architecture LlamaForCausalLM, this model has X"),
    ],
)
def test_a_file_for_another_model_is_refused(score_file, identity, tmp_path, change, named):
    path = tmp_path / "scores.json"
    with pytest.raises(ScoreFileError) as caught:
        check_fits(score_file, identity.model_copy(update=change), path)
    text = str(caught.value)
    assert str(path) in text
    assert "tiny-llama" in text
    assert named in text
    assert "\n" not in text


SAMPLE = ScoreFile.model_validate_json(
    json.dumps(
        {
            "schema_version": 1,
            "model": {
                "name": "one-head",
                "identity": {
                    "architecture": "LlamaForCausalLM",
                    "num_layers": 1,
                    "num_heads": 1,
                    "num_kv_heads": 1,
                    "head_size": 8,
                    "fingerprint": "0" * 64,
                },
            },
            "method": "retrieval",
            "provenance": {"tool_version": "headkv-vllm 0.1.0"},
            "scores": [[1.0]],
        }
    )
)

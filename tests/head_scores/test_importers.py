# SPDX-License-Identifier: Apache-2.0
"""Other programs' files, made here at the size of an 8B model, give the scores that are in them."""

import io
import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.importers import IMPORTERS, find_importer, guess_format
from headkv_vllm.head_scores.scores import fold_query_heads
from tests.head_scores.foreign_files import (
    HEADS,
    KV_HEADS,
    LAYERS,
    LLAMA_8B,
    TINY,
    imported,
    make_identity,
    npy,
    reference_document,
    written,
)


def refusal(path, identity=LLAMA_8B, tensor=None):
    with pytest.raises(ScoreFileError) as caught:
        imported(path, identity, tensor)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("how", ["mean", "max", "sum"])
def test_reference_scores_are_the_means_by_key(tmp_path, how):
    path = written(tmp_path, "heads.json", json.dumps(reference_document()) + "\n")
    found = imported(path)
    assert found.num_samples is None
    raw = json.loads(path.read_text())
    for layer in range(LAYERS):
        for kv_head in range(KV_HEADS):
            keys = [f"{layer}-{4 * kv_head + i}" for i in range(4)]
            means = [sum(raw[key]) / len(raw[key]) for key in keys]
            expected = {"mean": sum(means) / 4, "max": max(means), "sum": sum(means)}[how]
            folded = fold_query_heads(found.scores, KV_HEADS, how)
            assert folded.shape == (LAYERS, KV_HEADS)
            assert folded[layer, kv_head] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_reference_lists_of_one_length_tell_the_number_of_samples(tmp_path):
    path = written(tmp_path, "heads.json", json.dumps(reference_document(ragged=False)))
    assert imported(path).num_samples == 5


@pytest.mark.parametrize("how", ["mean", "max"])
def test_duo_attention_gates_are_folded_back_to_themselves(tmp_path, how):
    gates = np.random.default_rng(1).uniform(-0.2, 1.2, (LAYERS, KV_HEADS))
    np.savetxt(tmp_path / "full_attention_heads.tsv", gates, delimiter="\t")
    raw = [line.split("\t") for line in (tmp_path / "full_attention_heads.tsv").open()]
    for path in (tmp_path / "full_attention_heads.tsv", tmp_path):
        folded = fold_query_heads(imported(path).scores, KV_HEADS, how)
        for layer, row in enumerate(raw):
            expected = [min(1.0, max(0.0, float(cell))) for cell in row]
            assert folded[layer].tolist() == pytest.approx(expected, rel=1e-12)
    assert gates.min() < 0 and gates.max() > 1


def test_duo_attention_gates_are_only_scaled_by_the_sum_fold(tmp_path):
    gates = np.random.default_rng(1).random((LAYERS, KV_HEADS))
    np.savetxt(tmp_path / "full_attention_heads.tsv", gates, delimiter="\t")
    folded = fold_query_heads(imported(tmp_path).scores, KV_HEADS, "sum")
    np.testing.assert_allclose(folded, 4 * gates)


@pytest.mark.parametrize("shape", [(32, 8), (32, 1, 8), (1, 32, 8, 1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_kvzip_arrays_of_kv_heads(tmp_path, shape, dtype):
    values = np.random.default_rng(2).random((LAYERS, KV_HEADS)).astype(dtype)
    np.save(tmp_path / "scores.npy", values.reshape(shape))
    scores = imported(tmp_path / "scores.npy").scores
    assert scores.dtype == np.float64
    for head in range(HEADS):
        assert scores[:, head].tolist() == values[:, head // 4].tolist()


def test_kvzip_arrays_of_query_heads(tmp_path):
    values = np.random.default_rng(2).random((LAYERS, HEADS))
    np.save(tmp_path / "scores.npy", np.asfortranarray(values))
    np.testing.assert_array_equal(imported(tmp_path / "scores.npy").scores, values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_kvzip_safetensors(tmp_path, dtype):
    path = tmp_path / "scores.safetensors"
    values = torch.rand(LAYERS, 1, KV_HEADS, generator=torch.manual_seed(0)).to(dtype)
    safetensors.torch.save_file({"heads": values, "other": torch.ones(3)}, path)
    scores = imported(path, tensor="heads").scores
    for head in range(HEADS):
        assert scores[:, head].tolist() == values[:, 0, head // 4].tolist()
    assert "'heads', 'other'" in refusal(path)
    assert "no tensor 'none'" in refusal(path, tensor="none")


def test_a_tensor_is_not_transposed_by_dropping_dimensions(tmp_path):
    np.save(tmp_path / "scores.npy", np.ones((4, 1)))
    assert "[4, 1]" in refusal(tmp_path / "scores.npy", make_identity(1, 4, 4))


def changed(change):
    document = reference_document(2, 4)
    change(document)
    return json.dumps(document)


REFERENCE_ERRORS = [
    (changed(lambda d: d.pop("1-2")), "1 heads are missing, the first is 1-2"),
    (changed(lambda d: d.update({"1-4": [1]})), "with 2 layers x 5 query heads"),
    (changed(lambda d: d.update({"2-0": [1]})), "with 3 layers x 4 query heads"),
    (json.dumps(reference_document(3, 8)), "with 3 layers x 8 query heads"),
    (json.dumps(reference_document(1, 4)), "with 1 layers x 4 query heads"),
    (changed(lambda d: d.update({"01-2": [1]})), "'01-2' is not a head"),
    (changed(lambda d: d.update({"1_2": [1]})), "'1_2' is not a head"),
    (changed(lambda d: d.update({"1-٢": [1]})), "is not a head"),
    (changed(lambda d: d.update({"1-" + "9" * 5000: [1]})), "is not a head"),
    ('{"0-0": [1], "0-1": [1], "0-0": [2]}', "'0-0' stands more than once"),
    (changed(lambda d: d.update({"1-2": []})), "head 1-2 has []"),
    (changed(lambda d: d.update({"1-2": 3})), "head 1-2 has 3"),
    (changed(lambda d: d.update({"1-2": [0.5, -1]})), "head 1-2 has the score -1"),
    (changed(lambda d: d.update({"1-2": [float("nan")]})), "head 1-2 has the score nan"),
    (changed(lambda d: d.update({"1-2": [float("inf")]})), "head 1-2 has the score inf"),
    (changed(lambda d: d.update({"1-2": [10**400]})), "head 1-2 has the score 1000"),
    (changed(lambda d: d.update({"1-2": [True]})), "head 1-2 has the score True"),
    (changed(lambda d: d.update({"1-2": ["1"]})), "head 1-2 has the score '1'"),
    (changed(lambda d: d.update({key: [0] for key in d})), "all scores are zero"),
    ("[[1, 2], [3, 4]]", "it contains [[1, 2], [3, 4]], expected an object"),
    ("{}", "it has no heads"),
    ("", "not valid JSON"),
    ('{"0-0": [1]}\n{"0-0": [1]}', "not valid JSON"),
    ('{"0-0": [' + "1" * 5000 + "]}", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    (b"\xff\xfe", "not UTF-8"),
]


@pytest.mark.parametrize(("contents", "expected"), REFERENCE_ERRORS, ids=lambda x: str(x)[:40])
def test_reference_errors(tmp_path, contents, expected):
    assert expected in refusal(written(tmp_path, "heads.json", contents), TINY)


DUO_ERRORS = [
    ("1\t0\n", "1 lines, expected 2 layers"),
    ("1\t0\n1\t1\n0\t1\n", "3 lines, expected 2 layers"),
    ("1\t0\n1\n", "line 2 has 1 values, expected 2 KV heads"),
    ("1 0\n1 1\n", "line 1 has 1 values, expected 2 KV heads, separated by tabs"),
    ("1\t0\n1\tx\n", "line 2 has 'x'"),
    ("1\t0\n1\tnan\n", "line 2 has 'nan'"),
    ("1\t0\n1\t\n", "line 2 has"),
    ("-1\t0\n0\t0\n", "all scores are zero"),
    ("", "0 lines"),
    (b"\xff\t1\n1\t1\n", "not UTF-8"),
]


@pytest.mark.parametrize(("contents", "expected"), DUO_ERRORS, ids=lambda x: str(x)[:40])
def test_duo_attention_errors(tmp_path, contents, expected):
    assert expected in refusal(written(tmp_path, "full_attention_heads.tsv", contents), TINY)


def huge_npy():
    """A header that claims 8 TB, and no data."""
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


NPY_ERRORS = [
    (npy(np.ones((2, 3))), "shape is [2, 3], expected [2, 2] (KV heads) or [2, 4] (query heads)"),
    (npy(np.ones((4, 2))), "shape is [4, 2]"),
    (npy(np.ones(())), "shape is []"),
    (npy(np.ones((2, 2), np.int64)), "it has 'int64'"),
    (npy(np.ones((2, 2), np.longdouble)), "it has 'float128'"),
    (npy(np.array([[None]], object), allow_pickle=True), "Object arrays cannot be loaded"),
    (npy(np.full((2, 2), -1.0)), "query head 0 has the score -1.0"),
    (npy(np.array([[1, 1], [1, np.nan]])), "layer 1, query head 2 has the score nan"),
    (npy(np.zeros((2, 2))), "all scores are zero"),
    (npy(np.ones((2, 2)))[:-1], "not a readable .npy file"),
    (huge_npy(), "not a readable .npy file"),
    (npy(np.ones((2, 2))).replace(b"(2, 2)", b"((2, 2"), "not a readable .npy file"),
    (npy(np.ones((2, 2))).replace(b"(2, 2)", rb"'\:'"), "not a readable .npy file"),
    (b"PK\x03\x04", "neither .npy nor safetensors"),
]


@pytest.mark.parametrize(("contents", "expected"), NPY_ERRORS, ids=lambda x: str(x)[-40:])
def test_npy_errors(tmp_path, contents, expected):
    assert expected in refusal(written(tmp_path, "scores.npy", contents), TINY)


def test_a_tensor_is_named_in_safetensors_only(tmp_path):
    path = written(tmp_path, "scores.npy", npy(np.ones((2, 2))))
    assert "no tensor named 'heads'" in refusal(path, TINY, "heads")
    with pytest.raises(ScoreFileError, match="--tensor 'heads' is for --format kvzip only"):
        find_importer("reference", "heads")


def test_safetensors_of_integers_are_refused(tmp_path):
    path = tmp_path / "scores.safetensors"
    save_file({"heads": np.ones((2, 2), np.int32)}, path)
    assert "it has I32, expected one of F64, F32, F16, BF16" in refusal(path, TINY)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".PT"])
def test_torch_pickles_are_refused_with_advice(tmp_path, suffix):
    path = tmp_path / f"scores{suffix}"
    torch.save(torch.ones(2, 2), path)
    message = refusal(path, TINY)
    assert "torch pickle" in message and "can run any code" in message
    assert "weights_only=True" in message and "numpy.save" in message


def test_the_advice_for_pickles_works(tmp_path, monkeypatch):
    path = tmp_path / "scores.pt"
    torch.save(torch.rand(2, 1, 2).bfloat16(), path)
    code = refusal(path, TINY).partition("with ")[2]
    monkeypatch.chdir(tmp_path)
    eval(code, {"numpy": np, "torch": torch, "FILE": path})
    expected = torch.load(path)[:, 0].double().repeat_interleave(2, dim=1)
    assert imported(tmp_path / "scores.npy", TINY).scores.tolist() == expected.tolist()


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.json")
    assert "full_attention_heads.tsv" in refusal_of_folder(tmp_path)
    large = tmp_path / "large.json"
    large.touch()
    os.truncate(large, 256 * 2**20 + 1)
    assert "expected at most 268435456" in refusal(large)


def refusal_of_folder(folder):
    with pytest.raises(ScoreFileError) as caught:
        imported(folder)
    return str(caught.value)


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ScoreFileError, match=r"suffix '.csv' has no known format, expected .json"):
        guess_format(tmp_path / "scores.csv")
    with pytest.raises(ScoreFileError, match="'csv' is unknown: it must be one of reference, duo"):
        find_importer("csv")


def test_every_importer_says_what_it_reads():
    assert all(importer.__doc__ for importer in IMPORTERS.values())

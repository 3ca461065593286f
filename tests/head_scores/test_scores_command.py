# SPDX-License-Identifier: Apache-2.0
"""`headkv scores show`, `diff` and `import`, as a user calls them."""

import hashlib
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from headkv_vllm.cli.main import app
from headkv_vllm.head_scores.file import read_score_file, write_score_file
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.resources import scores_dir
from headkv_vllm.version import tool_version

LAYERS, HEADS = 3, 4  # of the conftest's checkpoint, which has 2 KV heads


def run(*arguments, columns=100):
    return CliRunner().invoke(app, ["scores", *map(str, arguments)], env={"COLUMNS": str(columns)})


def output(*arguments, columns=100):
    result = run(*arguments, columns=columns)
    assert result.exit_code == 0, result.output
    return result.stdout


def error(*arguments):
    """The one line that a refused command prints."""
    result = run(*arguments)
    assert result.exit_code == 1 and not result.stdout, result.output
    assert result.stderr.startswith("headkv: error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def model(checkpoint, tmp_path):
    return checkpoint(tmp_path / "Tiny-Llama")


@pytest.fixture
def reference(tmp_path):
    """A reference file for the checkpoint: head i of layer l has the scores l + i and l + i + 1."""
    path = tmp_path / "heads.json"
    document = {f"{i}-{j}": [i + j, i + j + 1] for i in range(LAYERS) for j in range(HEADS)}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def stored(score_file, tmp_path):
    path = tmp_path / "scores.json"
    write_score_file(path, score_file)
    return path


def test_show_has_the_provenance_a_map_and_the_top_heads(stored, score_file):
    shown = output("show", stored)
    assert "\x1b" not in shown
    for text in ("tiny-llama", "LlamaForCausalLM", "retrieval", "headkv-vllm 0.1.0", "128, 256"):
        assert text in shown
    assert score_file.model.identity.fingerprint in shown.replace("\n", "")
    values = score_file.values
    rows = re.findall(r"^ *(\d+) +((?:[\d.] ){4}) *([\d.]+)%$", shown, flags=re.MULTILINE)
    assert [int(layer) for layer, _, _ in rows] == [0, 1, 2]
    for row, (_, cells, share) in zip(values, rows, strict=True):
        tenths = [min(int(10 * value / values.max()), 9) for value in row]
        assert [int(cell.replace(".", "0")) for cell in cells.split()] == tenths
        assert float(share) == pytest.approx(100 * row.sum() / values.sum(), abs=0.051)
    layer, head = divmod(int(values.argmax()), HEADS)
    assert re.search(rf"^ *1 +{layer} +{head} +{values.max():.6g} ", shown, flags=re.MULTILINE)


def test_show_lists_as_many_heads_as_asked(stored):
    def ranks(*options):
        return re.findall(r"^ +(\d+) +\d+ +\d+ +\S+ +\S+%$", output(*options), re.MULTILINE)

    assert len(ranks("show", stored)) == 10
    assert ranks("show", stored, "--top", 3) == ["1", "2", "3"]
    assert ranks("show", stored, "--top", 0) == []


def test_show_takes_a_bundled_name():
    path = scores_dir() / "needle.json"
    assert output("show", "needle") == output("show", path)


@pytest.mark.parametrize("fold", ["none", "mean", "max", "sum"])
def test_show_as_json_has_the_folded_scores_summary(stored, score_file, fold):
    found = json.loads(output("show", stored, "--json", "--fold", fold, "--top", 1))
    values = score_file.values
    if fold != "none":
        values = fold_query_heads(values, 2, fold)
    assert found["fold"] == fold
    assert found["provenance"]["lengths"] == [128, 256]
    summary = found["summary"]
    assert (summary["num_layers"], summary["num_heads"]) == values.shape
    layer, head = divmod(int(values.argmax()), values.shape[1])
    [top] = summary["top"]
    assert (top["layer"], top["head"], top["score"]) == (layer, head, values.max())
    assert summary["layer_shares"] == pytest.approx((values.sum(axis=1) / values.sum()).tolist())


def test_show_writes_a_picture(stored, tmp_path):
    output("show", stored, "--png", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_control_characters_and_markup_of_a_file_are_not_obeyed(score_file, tmp_path):
    named = score_file.model.model_copy(update={"name": "[red]a\x1b[31mb\nc[/red]"})
    path = tmp_path / "scores.json"
    write_score_file(path, score_file.model_copy(update={"model": named}))
    shown = output("show", path)
    assert "\x1b" not in shown
    assert "[red]a [31mb c[/red]" in shown


def test_scores_of_one_layer_and_many_heads_fit_a_narrow_terminal(checkpoint, config, tmp_path):
    wide = {**config, "num_hidden_layers": 1, "num_attention_heads": 128, "head_dim": 8}
    model = checkpoint(tmp_path / "wide", config=wide)
    heads = tmp_path / "heads.npy"
    np.save(heads, np.arange(128.0)[None])
    out = tmp_path / "out.json"
    output("import", heads, "--model", model, "--out", out)
    assert all(len(line) <= 100 for line in output("show", out).splitlines())


def test_a_narrow_terminal_shows_the_whole_fingerprint(stored, score_file):
    lines = output("show", stored, columns=40).splitlines()
    assert max(map(len, lines)) <= 40
    cells = "".join(line.split()[-1] for line in lines[:10])
    assert score_file.model.identity.fingerprint in cells


def test_diff_of_a_file_with_itself_and_with_another(stored, score_file, tmp_path):
    same = json.loads(output("diff", stored, stored, "--json"))
    assert same == {
        "pearson": pytest.approx(1),
        "spearman": pytest.approx(1),
        "num_top": 6,
        "top_overlap": 1.0,
        "same_model": True,
    }
    other = tmp_path / "other.json"
    turned = tuple(tuple(row) for row in (1 - score_file.values).tolist())
    write_score_file(other, score_file.model_copy(update={"scores": turned}))
    found = output("diff", stored, other)
    assert re.search(r"Pearson +-1\.0000", found)
    assert re.search(r"top 6 heads in common +0\.0%", found)


def test_diff_with_constant_scores_says_so(stored, score_file, tmp_path):
    constant = tmp_path / "constant.json"
    rows = ((0.1,) * HEADS,) * LAYERS
    write_score_file(constant, score_file.model_copy(update={"scores": rows}))
    assert json.loads(output("diff", stored, constant, "--json"))["pearson"] is None
    assert output("diff", stored, constant).count("none: one side is constant") == 2


def test_diff_says_that_the_models_differ(stored, score_file, tmp_path):
    identity = score_file.model.identity.model_copy(update={"fingerprint": "0" * 64})
    scored = score_file.model.model_copy(update={"identity": identity})
    write_score_file(tmp_path / "b.json", score_file.model_copy(update={"model": scored}))
    assert re.search("same model +no", output("diff", stored, tmp_path / "b.json"))


def test_import_writes_a_score_file_for_the_model(reference, model, tmp_path):
    out = tmp_path / "out.json"
    printed = output("import", reference, "--model", model, "--out", out, "--notes", "MIT licence")
    assert str(out) in printed
    file = read_score_file(out)
    assert file.model.identity == identify_checkpoint(model)
    assert file.model.name == "tiny-llama"
    assert file.method == "imported: reference"
    assert file.provenance.tool_version == tool_version()
    assert file.provenance.num_samples == 2
    digest = hashlib.sha256(reference.read_bytes()).hexdigest()
    assert file.provenance.notes == f"heads.json, SHA-256 {digest}; MIT licence"
    expected = [[i + j + 0.5 for j in range(HEADS)] for i in range(LAYERS)]
    assert file.values.tolist() == expected
    assert "imported: reference" in output("show", out)


def test_import_takes_the_name_and_the_format_that_are_given(reference, model, tmp_path):
    odd = reference.rename(tmp_path / "heads.txt")
    out = tmp_path / "out.json"
    output("import", odd, "--model", model, "--out", out, "--format", "reference", "--name", "X")
    file = read_score_file(out)
    assert file.model.name == "X"
    assert file.provenance.notes.endswith(hashlib.sha256(odd.read_bytes()).hexdigest())


def test_import_of_duo_attentions_folder_and_of_a_named_tensor(model, tmp_path):
    gates = np.array([[0.5, 1.5], [0, 1], [-1, 0.25]])
    pattern, out = tmp_path / "pattern", tmp_path / "out.json"
    pattern.mkdir()
    np.savetxt(pattern / "full_attention_heads.tsv", gates, delimiter="\t")
    output("import", pattern, "--model", model, "--out", out)
    clipped = np.array([[0.5, 1], [0, 1], [0, 0.25]])
    assert fold_query_heads(read_score_file(out).values, 2, "mean").tolist() == clipped.tolist()
    assert read_score_file(out).provenance.notes.startswith("full_attention_heads.tsv, SHA-256")

    tensors = tmp_path / "heads.safetensors"
    save_file({"a": clipped, "b": 2 * clipped}, tensors)
    output("import", tensors, "--model", model, "--out", out, "--tensor", "b", "--force")
    assert read_score_file(out).values[0].tolist() == [1, 1, 2, 2]
    assert read_score_file(out).method == "imported: kvzip"


def test_import_does_not_write_over_a_file_unless_forced(reference, model, tmp_path):
    out = tmp_path / "out.json"
    out.write_text("mine")
    assert "exists" in error("import", reference, "--model", model, "--out", out)
    assert out.read_text() == "mine"
    output("import", reference, "--model", model, "--out", out, "--force")
    assert read_score_file(out).method == "imported: reference"


def test_a_refused_import_leaves_nothing_behind(reference, checkpoint, config, tmp_path):
    larger = checkpoint(tmp_path / "larger", config={**config, "num_hidden_layers": 5})
    before = sorted(tmp_path.iterdir())
    message = error("import", reference, "--model", larger, "--out", tmp_path / "out.json")
    assert "3 layers x 4 query heads; this model has 5 layers x 4 query heads" in message
    assert sorted(tmp_path.iterdir()) == before


ERRORS = [
    (["show", "needel"], "bundled", "needle"),
    (["show", "{tmp}/none.json"], "none.json", "needle"),
    (["show", "{tmp}/Tiny-Llama/config.json"], "cannot be used", ""),
    (["show", "{stored}", "--fold", "min"], "--fold is 'min'", "none, mean, max, sum"),
    (["show", "{stored}", "--png", "{tmp}/no/map.png"], "map.png", "cannot be written"),
    (["diff", "{stored}", "needle"], "3 layers x 4 heads and 4 layers x 8 heads", "same shape"),
    (["diff", "{stored}", "none"], "bundled", "needle"),
    (["import", "{tmp}/none.json"], "none.json", "no such file"),
    (["import", "{heads}", "--format", "csv"], "'csv'", "reference, duo-attention, kvzip"),
    (["import", "{heads}", "--format", "kvzip"], "heads.json", "neither .npy nor safetensors"),
    (["import", "{heads}", "--tensor", "a"], "--tensor 'a'", "kvzip only"),
    (["import", "{heads}", "--out", "{tmp}/no/out.json"], "no folder", "out.json"),
    (["import", "{heads}", "--model", "{tmp}/none"], "none", "no such folder"),
    (["import", "{heads}", "--model", "{tmp}"], "config.json", "No such file"),
    (["import", "{tmp}"], "full_attention_heads.tsv", "cannot be read"),
]


@pytest.mark.parametrize(("arguments", "found", "expected"), ERRORS, ids=lambda value: str(value))
def test_errors(stored, reference, model, tmp_path, monkeypatch, arguments, found, expected):
    monkeypatch.chdir(tmp_path)  # messages cut long values short
    paths = {"tmp": ".", "stored": stored, "heads": reference}
    given = [argument.format(**paths) for argument in arguments]
    if given[0] == "import":
        for option, value in (("--model", model), ("--out", tmp_path / "out.json")):
            given += [] if option in given else [option, value]
    message = error(*given)
    assert found in message and expected in message

# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from headkv_vllm.config import Settings
from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores import library
from headkv_vllm.head_scores.file import write_score_file
from headkv_vllm.head_scores.scores import resolve
from tests.head_scores import reference


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """An empty folder in place of the bundled one."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    monkeypatch.setattr(library, "scores_dir", lambda: folder)
    return folder


def _assert_uniform(head_scores, identity):
    assert head_scores.uniform
    assert head_scores.path is None
    assert head_scores.values.shape == (identity.num_layers, identity.num_kv_heads)
    assert np.ptp(head_scores.values) == 0 < head_scores.values.min()


@pytest.mark.parametrize("how", ["mean", "max", "sum"])
def test_a_path_gives_the_files_scores_folded(score_file, identity, tmp_path, how):
    path = tmp_path / "scores.json"
    write_score_file(path, score_file)
    found = resolve(Settings(scores=str(path), gqa_fold=how), identity)
    assert found.path == path
    assert not found.uniform
    assert found.warning is None
    assert path.name in found.source
    assert "tiny-llama" in found.source
    expected = reference.fold_query_heads(score_file.values, identity.num_kv_heads, how)
    np.testing.assert_allclose(found.values / found.values.sum(), expected / expected.sum())


def test_a_path_below_the_home_folder_may_start_with_a_tilde(
    score_file, identity, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_score_file(tmp_path / "scores.json", score_file)
    assert resolve(Settings(scores="~/scores.json"), identity).path == tmp_path / "scores.json"


def test_a_path_to_scores_of_other_heads_is_refused(score_file, identity, tmp_path):
    path = tmp_path / "scores.json"
    write_score_file(path, score_file)
    other = identity.model_copy(update={"num_layers": 4})
    with pytest.raises(ScoreFileError, match="it is for tiny-llama with num_layers 3, this model"):
        resolve(Settings(scores=str(path)), other)


def test_a_missing_path_is_refused(identity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a message
    with pytest.raises(ScoreFileError, match=r"no score file .*none\.json.*bundled one: needle"):
        resolve(Settings(scores="./none.json"), identity)


def test_a_quantised_copy_is_told_of_its_models_scores_and_takes_them_when_asked(
    score_file, identity, bundled
):
    write_score_file(bundled / "tiny.json", score_file)
    copy = identity.model_copy(update={"fingerprint": "0" * 64})
    found = resolve(Settings(), copy)
    _assert_uniform(found, copy)
    assert "a quantised or tuned copy of tiny, use those scores" in found.warning
    assert '--additional-config \'{"headkv": {"scores": "tiny"}}\'' in found.warning
    confirmed = resolve(Settings(scores="tiny"), copy)
    assert confirmed.path == bundled / "tiny.json" and not confirmed.uniform
    assert "tiny.json are for tiny-llama" in confirmed.warning and "\n" not in confirmed.warning
    assert resolve(Settings(scores="tiny"), identity).warning is None


def test_a_model_of_other_sizes_is_told_of_no_file(score_file, identity, bundled):
    write_score_file(bundled / "tiny.json", score_file)
    other = identity.model_copy(update={"fingerprint": "0" * 64, "head_size": 99})
    assert "tiny" not in resolve(Settings(), other).warning


def test_scores_near_the_largest_float_do_not_overflow(score_file, identity, tmp_path):
    path = tmp_path / "scores.json"
    scores = np.full((identity.num_layers, identity.num_heads), 1e308).tolist()
    document = score_file.model_dump() | {"scores": scores}
    write_score_file(path, type(score_file).model_validate(document))
    found = resolve(Settings(scores=str(path), gqa_fold="sum"), identity)
    assert found.uniform
    assert np.isfinite(found.values).all()


def test_auto_takes_the_bundled_file(score_file, identity, bundled):
    write_score_file(bundled / "tiny.json", score_file)
    found = resolve(Settings(), identity)
    assert found.path == bundled / "tiny.json"
    assert found.warning is None
    assert not found.uniform


def test_auto_without_a_file_is_uniform_and_says_how_to_change_that(identity, bundled):
    found = resolve(Settings(), identity)
    _assert_uniform(found, identity)
    assert found.warning is not None
    assert "\n" not in found.warning
    assert '--additional-config \'{"headkv": {"scores": "FILE.json"}}\'' in found.warning
    assert "`headkv score MODEL` makes them" in found.warning
    assert identity.fingerprint[:12] in found.warning


@pytest.mark.parametrize(
    "settings", [Settings(scores="uniform"), Settings(policy="uniform"), Settings(policy="adakv")]
)
def test_uniform_on_purpose_needs_no_warning(identity, bundled, settings):
    found = resolve(settings, identity)
    _assert_uniform(found, identity)
    assert found.warning is None


def test_values_are_read_only(identity):
    found = resolve(Settings(scores="uniform"), identity)
    with pytest.raises(ValueError, match="read-only"):
        found.values[0, 0] = 2

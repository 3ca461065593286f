# SPDX-License-Identifier: Apache-2.0
import logging

from headkv_vllm.head_scores.file import read_score_file, write_score_file
from headkv_vllm.head_scores.library import find_bundled
from headkv_vllm.resources import scores_dir


def test_the_file_with_the_models_fingerprint_is_found(score_file, identity, tmp_path):
    write_score_file(tmp_path / "tiny.json", score_file)
    (tmp_path / "README.md").write_text("not a score file")
    assert find_bundled(identity, tmp_path) == tmp_path / "tiny.json"
    other = identity.model_copy(update={"fingerprint": "0" * 64})
    assert find_bundled(other, tmp_path) is None


def test_a_broken_file_is_passed_over_with_a_warning(score_file, identity, tmp_path, caplog):
    broken = tmp_path / "a-broken.json"
    broken.write_text("{")
    write_score_file(tmp_path / "b.json", score_file)
    with caplog.at_level(logging.WARNING):
        assert find_bundled(identity, tmp_path) == tmp_path / "b.json"
    assert len(caplog.records) == 1
    assert str(broken) in caplog.text


def test_every_bundled_file_is_usable_and_the_only_one_for_its_model():
    paths = sorted(scores_dir().glob("*.json"))
    fingerprints = [read_score_file(path).model.identity.fingerprint for path in paths]
    assert len(set(fingerprints)) == len(paths)

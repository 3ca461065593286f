# SPDX-License-Identifier: Apache-2.0
import pytest

from headkv_vllm.errors import HeadKVError
from headkv_vllm.resources import data_dir, scores_dir


def test_the_score_folder_of_this_installation_describes_itself():
    assert (scores_dir() / "README.md").is_file()


def test_a_checkout_uses_the_folder_beside_the_package(tmp_path):
    (tmp_path / "headkv_vllm").mkdir()
    (tmp_path / "scores").mkdir()
    assert data_dir("scores", tmp_path / "headkv_vllm") == tmp_path / "scores"


def test_an_installed_package_uses_its_own_copy_whatever_lies_beside_it(tmp_path):
    copy = tmp_path / "headkv_vllm" / "_data" / "scores"
    copy.mkdir(parents=True)
    (tmp_path / "scores").mkdir()
    assert data_dir("scores", tmp_path / "headkv_vllm") == copy


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(HeadKVError, match="no 'scores' folder"):
        data_dir("scores", tmp_path / "headkv_vllm")

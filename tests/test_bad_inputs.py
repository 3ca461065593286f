# SPDX-License-Identifier: Apache-2.0
"""Hundreds of bad inputs, each refused in one line that names what is wrong."""

import json

import pytest

from headkv_vllm.config import Settings
from headkv_vllm.errors import HeadKVError, RequestError, ScoreFileError, SettingsError
from headkv_vllm.head_scores.file import Provenance, ScoredModel, ScoreFile, read_score_file
from headkv_vllm.head_scores.identity import ModelIdentity, identify
from headkv_vllm.request_overrides import request_settings
from tests.bad_inputs import (
    bad_arguments,
    bad_documents,
    bad_plans,
    bad_settings,
    broken_files,
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "head_dim": 8,
}
SIZES = [name for name in CONFIG if name not in ("architectures", "hidden_size")]
DOCUMENT = ScoreFile(
    schema_version=1,
    model=ScoredModel(name="model", identity=identify(CONFIG, {})),
    method="headkv",
    provenance=Provenance(tool_version="1", seed=1, num_samples=3),
    scores=((1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 1.0, 1.0)),
).model_dump(mode="json")
PATHS = ["schema_version", "model", "model.name", "model.identity", "method", "provenance"]
PATHS += [f"model.identity.{name}" for name in ModelIdentity.model_fields]
PATHS += [f"provenance.{name}" for name in ("tool_version", "seed", "num_samples")]
PATHS += ["scores", "scores.0", "scores.0.0"]

SETTINGS = bad_settings([*Settings.model_fields, "none_such"])
ARGUMENTS = bad_arguments()
DOCUMENTS = bad_documents(DOCUMENT, PATHS)
MODELS = bad_documents(CONFIG, ["architectures", *SIZES])
FILES = broken_files(DOCUMENT)


def test_there_are_more_than_three_hundred_of_them():
    every = [*SETTINGS, *ARGUMENTS, *bad_plans(), *DOCUMENTS, *MODELS, *FILES]
    assert len({(bad.field, bad.kind, repr(bad.value)) for bad in every}) == len(every) > 300


def refusal(kind: type[HeadKVError], refuse, bad) -> str:
    with pytest.raises(HeadKVError) as raised:
        refuse(bad.value)
    assert raised.type is kind, bad
    line = str(raised.value)
    assert line and "\n" not in line and len(line) < 1000, bad
    return line


def test_settings():
    for bad in SETTINGS:
        assert bad.field in refusal(SettingsError, Settings.parse, bad), bad


def test_arguments_of_requests():
    settings = Settings(budget=128)
    for bad in ARGUMENTS:
        line = refusal(RequestError, lambda value: request_settings(settings, value), bad)
        assert bad.field in line, bad


def test_score_files(tmp_path):
    path = tmp_path / "scores.json"
    for bad in DOCUMENTS:
        path.write_text(json.dumps(bad.value))
        line = refusal(ScoreFileError, lambda _: read_score_file(path), bad)
        assert str(path) in line, bad


def test_files_that_are_no_score_files(tmp_path):
    path = tmp_path / "scores.json"
    for bad in FILES:
        path.write_bytes(bad.value)
        assert str(path) in refusal(ScoreFileError, lambda _: read_score_file(path), bad), bad


def test_models():
    for bad in MODELS:
        refusal(ScoreFileError, lambda config: identify(config, {}), bad)

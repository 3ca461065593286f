# SPDX-License-Identifier: Apache-2.0
"""Whatever is in a file, an importer gives checked scores or the one error."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.importers import find_importer
from tests.head_scores.foreign_files import TINY, npy, reference_document, written

SUFFIXES = [("reference", ".json"), ("duo-attention", ".tsv"), ("kvzip", ".npy")]
SUFFIXES += [("kvzip", ".safetensors")]
fuzz = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refused(path, format_name):
    """Whatever is in the file: checked scores, or the one error, on one line."""
    try:
        scores = find_importer(format_name)(path, TINY).scores
    except ScoreFileError as error:
        message = str(error)
    else:
        message = ""
        assert scores.shape == (2, 4) and np.isfinite(scores).all()
        assert (scores >= 0).all() and scores.any()
    assert "\n" not in message


def valid(suffix):
    contents = {
        ".json": json.dumps(reference_document(2, 4)).encode(),
        ".tsv": b"0.5\t1e0\n-1\t2\n",
        ".npy": npy(np.ones((2, 2))),
        ".safetensors": safetensors.torch.save({"heads": torch.ones(2, 2)}),
    }
    return contents[suffix]


@pytest.mark.parametrize(("format_name", "suffix"), SUFFIXES)
@fuzz
@given(data=st.binary(max_size=200))
@example(data=b"\x93NUMPY\x01\x00")
def test_random_bytes_are_refused(tmp_path, format_name, suffix, data):
    read_or_refused(written(tmp_path, f"scores{suffix}", data), format_name)


@pytest.mark.parametrize(("format_name", "suffix"), SUFFIXES)
@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 500),
)
def test_damaged_files_are_read_or_refused(tmp_path, format_name, suffix, edits, cut):
    contents = bytearray(valid(suffix))
    for place, value in edits:
        contents[place % len(contents)] = value
    read_or_refused(written(tmp_path, f"scores{suffix}", bytes(contents[:cut])), format_name)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@fuzz
@given(
    changes=st.dictionaries(
        st.from_regex("[0-3]-[0-5]", fullmatch=True) | st.text(max_size=5), JSON_VALUES, max_size=3
    )
)
@example(changes={f"{layer}-{head}": [1e308] * 9 for layer in (0, 1) for head in range(4)})
def test_other_json_values_are_read_or_refused(tmp_path, changes):
    document = json.dumps({**reference_document(2, 4), **changes})
    read_or_refused(written(tmp_path, "heads.json", document), "reference")

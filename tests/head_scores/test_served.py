# SPDX-License-Identifier: Apache-2.0
"""What of the scores travels to a server's processes, and is shown."""

import json

from headkv_vllm.config import Settings
from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.scores import ServedScores, resolve
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.resources import scores_dir

IDENTITY = identify_checkpoint(checkpoint_path())


def test_a_files_scores_come_back_with_their_origin_and_without_a_path() -> None:
    scores = resolve(Settings(), IDENTITY)
    text = json.dumps(ServedScores.from_scores(scores).model_dump(mode="json"))
    served = ServedScores.model_validate(json.loads(text))
    assert served.values == tuple(tuple(row) for row in scores.values.tolist())
    assert served.origin is not None
    assert served.origin.file == "needle.json"
    assert served.origin.provenance == read_score_file(scores_dir() / "needle.json").provenance
    assert str(scores_dir()) not in text


def test_uniform_scores_have_no_origin() -> None:
    served = ServedScores.from_scores(resolve(Settings(scores="uniform"), IDENTITY))
    assert served.uniform and served.origin is None
    assert {score for row in served.values for score in row} == {1.0}

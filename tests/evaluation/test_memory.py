# SPDX-License-Identifier: Apache-2.0
"""Kept bytes are the plan's, for every policy, and what the server says it gave up is compared."""

import pytest

from headkv_vllm.budgets.plan import make_plan
from headkv_vllm.config import Settings
from headkv_vllm.errors import EvaluationError, ScoreFileError
from headkv_vllm.evaluation.cells import CellCompression, compressions
from headkv_vllm.evaluation.memory import MemoryPlans, check_saved, scores_digest
from headkv_vllm.evaluation.request import POLICIES
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.scores import resolve
from headkv_vllm.needle import checkpoint_path
from tests.evaluation.answering import answering

IDENTITY = identify_checkpoint(checkpoint_path())
BLOCK_BYTES = 2 * 4 * 32 * 16 * 4 * 4
"""Keys and values, 4 bytes a number, 32 numbers, 16 tokens, 4 layers of 4 KV heads."""


def plans(servers, settings=None, identity=IDENTITY):
    return MemoryPlans(identity, servers, settings or {}, 16, 4)


@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_are_whole_blocks_by_the_plan(policy):
    (server,) = compressions([policy], [128])
    memory = plans([server]).for_prompt(server, 1000)
    # 1,000 tokens are 63 blocks. Kept: (128 - 8) // 16 = 7 blocks, and those of the tail:
    # F = (1000 - 8) // 16 = 62, so one more.
    assert memory.full_bytes == 63 * BLOCK_BYTES
    assert memory.kept_bytes == (63 if policy == "full" else 7 + 1) * BLOCK_BYTES
    # Of the tail's block 8 tokens are there.
    assert memory.kept_tokens == (1000 if policy == "full" else 7 * 16 + 8)


def test_settings_and_ratios_reach_the_plan():
    server = CellCompression("uniform", 0.25)
    settings = Settings(policy="uniform", keep_ratio=0.25, window=32)
    scores = resolve(settings, IDENTITY).values
    plan = make_plan(scores, settings, 900, 16, 32, 4)
    memory = plans([server], {"window": 32}).for_prompt(server, 900)
    assert (memory.kept_bytes, memory.kept_tokens) == (plan.kv_bytes_held, plan.mean_kept_tokens)


def test_a_prompt_with_nothing_to_gain_keeps_all():
    server = CellCompression("headkv", 128)
    memory = plans([server]).for_prompt(server, 100)
    assert memory.kept_bytes == memory.full_bytes == 7 * BLOCK_BYTES


def test_scores_are_named_where_they_count_and_missed_where_they_lack():
    servers = compressions(["full", "headkv", "uniform"], [64, 128])
    known = plans(servers)
    assert known.warnings() == [] and list(known.sources()) == ["headkv"]
    assert "needle.json" in known.sources()["headkv"]
    other = IDENTITY.model_copy(update={"fingerprint": "0" * 64})
    unknown = plans(servers, identity=other)
    (warning,) = unknown.warnings()
    assert "no head scores are bundled" in warning
    assert scores_digest(known.headkv_scores) != scores_digest(unknown.headkv_scores)
    assert plans(servers[:1], identity=other).warnings() == []


def test_a_server_that_held_more_than_planned_is_noticed():
    """One that gave up 55 of 63 blocks, in two engines, of 880 tokens."""
    text = """
headkv:prompt_tokens_total{engine="0"} 900.0
headkv:prompt_tokens_total{engine="1"} 100.0
headkv:kept_tokens_total{engine="0"} 100.0
headkv:kept_tokens_total{engine="1"} 20.0
"""
    server = CellCompression("uniform", 128)
    known = plans([server])
    memory = known.for_prompt(server, 1000)
    saved = memory.full_bytes - memory.kept_bytes
    with answering(lambda body: (200, {}), metrics=text) as recorded:
        assert check_saved(recorded.url, saved, known.token_bytes) is None
        warning = check_saved(recorded.url, 2 * saved, known.token_bytes)
        assert "freed 3,520 KiB of the prompts, but the plan is 7,040 KiB" in warning
    with pytest.raises(EvaluationError, match="shows no metrics"):
        check_saved(recorded.url, saved, known.token_bytes)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ScoreFileError, match=r"config\.json"):
        MemoryPlans.from_checkpoint(tmp_path, [], {}, 16, 4)

# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headkv_vllm.budgets.allocation import allocate_head_blocks
from headkv_vllm.budgets.plan import MAX_TOKENS, Plan, make_plan
from headkv_vllm.budgets.request import request_budget
from headkv_vllm.budgets.tensor_parallel import worker_kv_heads
from headkv_vllm.config import Settings
from headkv_vllm.errors import SettingsError

HEAD_SIZE, BYTES = 32, 2


def some_scores(num_layers, num_kv_heads, seed=0):
    return np.random.default_rng(seed).pareto(2, (num_layers, num_kv_heads))


def plan(settings, num_prompt_tokens, block_size=32, scores=None, ranks=1):
    scores = some_scores(4, 4) if scores is None else scores
    parsed = Settings.parse(settings)
    return make_plan(scores, parsed, num_prompt_tokens, block_size, HEAD_SIZE, BYTES, ranks)


@pytest.mark.parametrize(
    ("settings", "num_prompt_tokens", "num_blocks", "tail", "mean"),
    [
        # ratio 1/8 of 2000 is 250: K = (250 - 8) // 32 = 7, F = 1992 // 32 = 62, 63 blocks in all.
        # tests/engine/test_memory.py sees the same numbers in an engine: 7 + 63, then 7 + 63 - 62.
        ({"keep_ratio": 1 / 8}, 2000, (7, 62, 8, 70, 63), 16, 7 * 32 + 16),
        # 62 blocks, the window and one token: the tail begins with a new block.
        ({"keep_ratio": 1 / 8}, 1993, (7, 62, 8, 70, 63), 9, 7 * 32 + 9),
        # The prompt ends with its last block, so the tail and its window are in one block.
        ({"keep_ratio": 1 / 8}, 2016, (7, 62, 8, 70, 63), 32, 7 * 32 + 32),
        # The tail is in two blocks.
        ({"keep_ratio": 1 / 8}, 2020, (7, 62, 9, 71, 64), 36, 7 * 32 + 36),
        ({"budget": 128}, 1000, (3, 31, 4, 35, 32), 8, 3 * 32 + 8),
        ({"budget": 9, "min_blocks": 5}, 1000, (5, 31, 6, 37, 32), 8, 5 * 32 + 8),
        # 71 tokens at ratio 1/8: K = 1 is not below F = 1.
        ({"keep_ratio": 1 / 8}, 71, (0, 1, 3, 3, 3), 39, 71),
        ({"budget": 0}, 1000, (0, 31, 32, 32, 32), 8, 1000),
        ({"budget": 1024}, 1, (0, 0, 1, 1, 1), 1, 1),
    ],
)
def test_counts_that_were_computed_by_hand(settings, num_prompt_tokens, num_blocks, tail, mean):
    made = plan(settings, num_prompt_tokens)
    assert num_blocks == (
        made.num_compressed_blocks,
        made.num_full_blocks,
        made.num_blocks_held,
        made.num_blocks_prefill,
        made.num_blocks_stock,
    )
    assert (made.num_tail_tokens, made.mean_kept_tokens) == (tail, mean)
    assert made.kept_share == mean / num_prompt_tokens


def test_bytes_of_the_needle_model():
    made = plan({"keep_ratio": 1 / 8}, 2000)
    # 32 tokens, keys and values, 4 layers, 4 KV heads of 32 numbers of 2 bytes: 64 KiB a block.
    assert made.kv_bytes_held == 8 * 65536
    assert made.kv_bytes_prefill == 70 * 65536
    assert made.kv_bytes_stock == 63 * 65536


@pytest.mark.parametrize(
    ("settings", "num_prompt_tokens", "reason"),
    [
        ({"budget": 0}, 5000, "the budget is 0"),
        ({}, 1000, "the prompt is too short: it has 31 blocks before"),
        ({"keep_ratio": 1.0}, 5000, "it has 156 blocks before its observation window"),
        ({"budget": 128, "min_blocks": 40}, 1000, "it has 31 blocks before its observation window"),
    ],
)
def test_a_request_that_is_not_compressed_keeps_everything_and_says_why(
    settings, num_prompt_tokens, reason
):
    made = plan(settings, num_prompt_tokens)
    assert not made.compressed and made.reason is not None and reason in made.reason
    assert made.num_blocks_held == made.num_blocks_prefill == made.num_blocks_stock
    assert made.head_blocks == ((made.num_full_blocks,) * 4,) * 4
    assert (made.mean_kept_tokens, made.kept_share) == (num_prompt_tokens, 1)


def test_the_policy_chooses_the_head_blocks():
    scores = np.array([[0.0, 0.0], [0.0, 1.0]])
    uniform = plan({"budget": 128, "policy": "uniform"}, 1000, scores=scores)
    headkv = plan({"budget": 128}, 1000, scores=scores)
    assert uniform.head_blocks == ((3, 3), (3, 3))
    # The base 3 - 3/1.2 = 0.5 is raised to 1 block. The head with a score gets the rest of 12.
    assert headkv.head_blocks == ((1, 1), (1, 9))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_rank_allocates_to_its_own_heads(ranks):
    scores, settings = some_scores(3, 4), Settings(budget=200)
    made = make_plan(scores, settings, 4000, 16, HEAD_SIZE, BYTES, ranks)
    budget = request_budget(settings, 4000, 16)
    for rank in range(ranks):
        own = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
        blocks = np.array(made.head_blocks)[:, own]
        np.testing.assert_array_equal(
            blocks, allocate_head_blocks(scores[:, own], budget, settings)
        )
        assert blocks.sum() == made.num_compressed_blocks * blocks.size


def test_ranks_beyond_the_kv_heads_hold_copies_and_count_them():
    scores, settings = some_scores(3, 2), Settings(budget=200)
    two, four = (make_plan(scores, settings, 4000, 16, HEAD_SIZE, BYTES, n) for n in (2, 4))
    blocks_of_two, blocks_of_four = np.array(two.head_blocks), np.array(four.head_blocks)
    np.testing.assert_array_equal(blocks_of_four, np.repeat(blocks_of_two, 2, axis=1))
    assert four.num_blocks_held == two.num_blocks_held
    assert four.kv_bytes_held == 2 * two.kv_bytes_held
    assert four.kv_bytes_stock == 2 * two.kv_bytes_stock
    assert four.mean_kept_tokens == two.mean_kept_tokens


@pytest.mark.parametrize(("num_kv_heads", "ranks"), [(8, 1), (8, 4), (8, 8), (2, 8), (1, 4)])
def test_the_ranks_together_hold_every_head_equally_often(num_kv_heads, ranks):
    held = [worker_kv_heads(num_kv_heads, rank, ranks) for rank in range(ranks)]
    flat = [head for heads in held for head in heads]
    copies = max(1, ranks // num_kv_heads)
    assert flat == sorted(list(range(num_kv_heads)) * copies)
    assert len({len(heads) for heads in held}) == 1


@hypothesis_settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_sums_are_exact_and_within_bounds(data):
    shape = data.draw(st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 4, 8])), "shape")
    ranks = data.draw(st.sampled_from([1, 2, 4, 8, 16]), "ranks")
    block_size = data.draw(st.sampled_from([1, 16, 32, 128]), "block_size")
    num_prompt_tokens = data.draw(st.integers(1, 50_000), "num_prompt_tokens")
    window = data.draw(st.integers(1, 64), "window")
    settings = Settings.parse(
        {
            "window": window,
            "min_blocks": data.draw(st.integers(1, 4), "min_blocks"),
            "policy": data.draw(st.sampled_from(["headkv", "uniform"]), "policy"),
            "beta": data.draw(st.floats(1.01, 50), "beta"),
            **data.draw(
                st.one_of(
                    st.builds(lambda extra: {"budget": window + extra}, st.integers(1, 5000)),
                    st.builds(lambda ratio: {"keep_ratio": ratio}, st.floats(0.001, 1)),
                    st.just({"budget": 0}),
                ),
                "amount",
            ),
        }
    )
    scores = some_scores(*shape, seed=data.draw(st.integers(0, 100), "seed"))
    made = make_plan(scores, settings, num_prompt_tokens, block_size, HEAD_SIZE, BYTES, ranks)
    check(made, settings, shape)


def check(made: Plan, settings: Settings, shape: tuple[int, int]) -> None:
    num_layers, num_heads = shape[0], max(shape[1], made.tensor_parallel_size)
    blocks = np.array(made.head_blocks)
    num_compressed, num_full = made.num_compressed_blocks, made.num_full_blocks
    assert blocks.shape == (num_layers, num_heads)
    assert made.compressed == (made.reason is None) == (num_compressed > 0)
    if made.compressed:
        assert blocks.sum() == num_compressed * blocks.size
        assert settings.min_blocks <= blocks.min() <= blocks.max() <= num_full
        assert made.num_blocks_held < made.num_blocks_stock
    assert made.num_blocks_held <= made.num_blocks_stock
    assert made.num_blocks_prefill == made.num_blocks_stock + num_compressed

    kept = blocks * made.block_size + made.num_tail_tokens
    assert kept.mean() == pytest.approx(made.mean_kept_tokens)
    assert min(settings.window, made.num_prompt_tokens) <= made.num_tail_tokens
    assert kept.max() <= made.num_prompt_tokens
    # The blocks have room for all kept tokens, and less than one block of room is left.
    spare = made.num_blocks_held * made.block_size - made.mean_kept_tokens
    assert -1e-6 < spare < made.block_size
    token_bytes = 2 * BYTES * HEAD_SIZE * num_layers * num_heads
    assert made.kv_bytes_held == made.num_blocks_held * made.block_size * token_bytes
    assert made.kv_bytes_stock == made.num_blocks_stock * made.block_size * token_bytes


def test_a_plan_goes_through_json_unchanged():
    made = plan({"budget": 128}, 1000)
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValidationError):
        plan({}, 1000).num_full_blocks = 1


def test_the_longest_prompt_has_a_plan():
    made = plan({"keep_ratio": 0.5}, MAX_TOKENS, block_size=16)
    assert np.array(made.head_blocks).sum() == made.num_compressed_blocks * 16


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 32, 1), "prompt length 0 is not allowed"),
        ((-5, 32, 1), "prompt length -5 is not allowed"),
        ((2**31, 32, 1), "from 1 to 2147483647"),
        ((100, 0, 1), "block size 0 is not allowed"),
        ((100, 32, 0), "tensor parallel size 0 is not allowed"),
        ((100, 32, 3), "must divide the model's 4 KV heads, or be a multiple of them"),
        ((100, 32, 6), "must divide the model's 4 KV heads, or be a multiple of them"),
    ],
)
def test_numbers_that_cannot_be_served_are_refused(numbers, message):
    num_prompt_tokens, block_size, ranks = numbers
    with pytest.raises(SettingsError, match=message) as raised:
        plan({}, num_prompt_tokens, block_size, ranks=ranks)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "num_prompt_tokens", "held", "prefill", "most", "first_point"),
    [
        # K = (128 - 8) // 16 = 7 and a block for queries; F = 62 of 63 prompt blocks.
        ({"compress_every": 64}, 1000, 7 + 1 + 1, 7 + 1 + 63, 7 + 1 + 1 + 4 + 1, 1000),
        # 2 * 7 * 16 + 8 = 232 tokens come first: nothing is compressed when the prompt is complete.
        ({"compress_every": 64}, 100, 7 + 1 + 7, 7 + 1 + 7, 7 + 1 + 1 + 4 + 1, 232),
        # 1000 = 232 + 768 is a point, which the next step compresses at; before it: at 936 tokens.
        (
            {"compress_every": 64, "compress_prefill": True},
            1000,
            7 + 1 + 63 - (936 - 8) // 16,
            7 + 1 + 15 + 1,
            7 + 1 + 1 + 4 + 1,
            232,
        ),
        ({}, 1000, 7 + 1, 7 + 63, None, 1000),
    ],
)
def test_a_request_that_is_compressed_again(
    settings, num_prompt_tokens, held, prefill, most, first_point
):
    made = plan({"budget": 128, **settings}, num_prompt_tokens, block_size=16)
    assert (made.num_blocks_held, made.num_blocks_prefill) == (held, prefill)
    assert (made.max_blocks_held, made.first_point) == (most, first_point)
    is_compressed = first_point <= num_prompt_tokens
    assert (made.mean_kept_tokens < num_prompt_tokens) == is_compressed


def test_blocks_without_room_for_queries_are_refused():
    with pytest.raises(SettingsError, match="compress_every=64 is not allowed with blocks of 1 "):
        make_plan(some_scores(2, 2), Settings(compress_every=64), 1000, 1, HEAD_SIZE, 2, 1, 4)

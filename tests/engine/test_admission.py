# SPDX-License-Identifier: Apache-2.0
"""A compressed request is admitted when what runs has room to grow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.utils.math_utils import cdiv

from headkv_vllm.engine.admission import FIRST_GUESS, Forecast, peak
from tests.engine.helpers.bookkeeping_engine import BookkeepingEngine, engine_config, write_model

SETTINGS = {"budget": 64, "window": 8}
PROMPT = [token % 97 + 3 for token in range(4000)]
"""Of 200 tokens in blocks of 16 a request holds K = 3 blocks and 1 of F = 12, and then it grows."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(settings, num_blocks=, **flags): an engine that keeps books."""
    model = write_model(tmp_path_factory.mktemp("model"))

    def start(settings, num_blocks, **flags):
        every = {"max_num_batched_tokens": 1024, "max_num_seqs": 16, **flags}
        return BookkeepingEngine(engine_config(model, settings, **every), num_blocks)

    return start


def run(engine, num_requests, max_tokens):
    """All sent at once. Returns the most that ran at once, and how many preemptions there were."""
    for index in range(num_requests):
        engine.add(f"r{index}", PROMPT[13 * index :][:200], max_tokens=max_tokens)
    requests = list(engine.scheduler.requests.values())
    most = 0
    while engine.scheduler.has_requests():
        engine.step()
        most = max(most, len(engine.scheduler.running))
    return most, sum(request.num_preemptions for request in requests)


@given(
    st.lists(
        st.builds(
            Forecast,
            num_tokens=st.integers(1, 200),
            num_left=st.integers(0, 100),
            num_held=st.just(0),
            num_to_prefill=st.just(0),
            num_after=st.integers(1, 30),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([1, 16, 32]),
)
def test_the_peak_is_that_of_the_plain_reference(forecasts, block_size):
    assert peak(forecasts, block_size) == peak_plain(forecasts, block_size)


def test_a_request_that_ends_makes_room_for_those_that_go_on():
    """Two that hold 4 blocks each: one grows to 8, but the other has ended by then."""
    forecasts = [Forecast(64, 64, 4, 0, 4), Forecast(64, 16, 4, 0, 4)]
    assert peak(forecasts, block_size=16) == 4 + 1 + 4 + 1
    assert peak(forecasts[:1], block_size=16) == 8


@pytest.mark.parametrize("max_num_batched_tokens", [1024, 240, 96])
@pytest.mark.parametrize(("num_blocks", "max_tokens"), [(61, 160), (150, 30), (97, 60)])
def test_what_compressed_requests_generate_outgrows_no_pool(
    start, num_blocks, max_tokens, max_num_batched_tokens
):
    """Whether prompts are read at once, one after the other, or in chunks."""
    engine = start(SETTINGS, num_blocks, max_num_batched_tokens=max_num_batched_tokens)
    most, num_preemptions = run(engine, 20, max_tokens)
    assert num_preemptions == 0 and most >= 4


def test_without_a_look_ahead_it_does(start):
    engine = start(SETTINGS, num_blocks=61)
    engine.manager.admission = lambda _, num_missing: num_missing
    most, num_preemptions = run(engine, 20, max_tokens=160)
    assert num_preemptions > 0 and most > 4


def test_vllms_own_setting_turns_it_off(start):
    engine = start(SETTINGS, num_blocks=61, scheduler_reserve_full_isl=False)
    assert run(engine, 20, max_tokens=160)[1] > 0


def test_requests_that_are_not_compressed_are_admitted_as_in_vllm(start):
    engine = start({"budget": 0}, num_blocks=61)
    engine.add("a", PROMPT[:200], max_tokens=400)
    engine.step()
    engine.add("b", PROMPT[300:500], max_tokens=400)
    assert engine.manager.admission("b", 13) == 13


@pytest.mark.parametrize("num_tokens", [3, 40])
def test_answers_that_have_ended_say_how_long_the_next_will_be(start, num_tokens):
    engine = start(SETTINGS, num_blocks=400)
    engine.add("first", PROMPT[:200], max_tokens=FIRST_GUESS + 200)
    engine.step()
    engine.add("next", PROMPT[300:500], max_tokens=FIRST_GUESS + 200)
    before = engine.manager.admission("next", 16)
    # Both are expected to grow to 64 blocks more than the 4 that each holds of its prompt.
    assert before + 16 >= 2 * FIRST_GUESS // 16  # "first" is still to give back its prompt
    engine.abort("next")
    for index in range(3):
        engine.add(f"r{index}", PROMPT[500 + 11 * index :][:200], max_tokens=num_tokens)
    for _ in range(num_tokens + 3):
        engine.step()
    assert set(engine.scheduler.requests) == {"first"}
    engine.add("next", PROMPT[300:500], max_tokens=FIRST_GUESS + 200)
    # The first one's answer is longer than those by now, so it is expected to go on for a block.
    assert engine.manager.admission("next", 16) <= 16 + 1


def test_nobody_grows_beyond_the_longest_sequence(start):
    """Each comes to 256 tokens and 8 blocks, whatever it asked for: 3 and the blocks from F on."""
    engine = start(SETTINGS, num_blocks=1 + 8 + 13 + 3, max_model_len=256)
    most, num_preemptions = run(engine, num_requests=2, max_tokens=3000)
    assert (most, num_preemptions) == (2, 0)


def peak_plain(forecasts: list[Forecast], block_size: int) -> int:
    """Plain twin of `peak`: step by step."""
    most = 0
    for step in range(max(forecast.num_left for forecast in forecasts) + 1):
        held = 0
        for forecast in forecasts:
            if forecast.num_left >= step:
                blocks = cdiv(forecast.num_tokens + step, block_size)
                held += forecast.num_after + blocks - cdiv(forecast.num_tokens, block_size)
        most = max(most, held)
    return most

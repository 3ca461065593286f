# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.config import PolicyName, Settings, UnscoredPolicy
from headkv_vllm.errors import RequestError
from headkv_vllm.request_overrides import request_settings

NAN, INFINITY = float("nan"), float("inf")
DEFAULT = Settings()
BOUNDED = Settings(budget=128, min_budget=64, max_budget=512)
UNSCORED = Settings(policy="uniform")
ANY_BUDGET, BOUNDED_BUDGET = "0 (off) or an integer of at least 9", "an integer from 64 to 512"

GOOD = [
    ({}, {}),
    (None, {}),
    ({"session_id": "x", "headkv_forced_tokens": [1], "budget": 5}, {}),
    ({"headkv_budget": 9}, {"budget": 9}),
    ({"headkv_budget": 0}, {"budget": 0}),
    ({"headkv_budget": 2**63}, {"budget": 2**63}),
    ({"headkv_keep_ratio": 0.25}, {"keep_ratio": 0.25, "budget": None}),
    ({"headkv_keep_ratio": 1}, {"keep_ratio": 1.0, "budget": None}),
    ({"headkv_policy": "adakv"}, {"policy": "adakv"}),
    ({"headkv_compress_every": 8}, {"compress_every": 8}),
    ({"headkv_compress_every": 0}, {"compress_every": 0}),
    ({"headkv_budget": 64, "headkv_policy": "random"}, {"budget": 64, "policy": "random"}),
]
BAD = [
    (DEFAULT, {"headkv_budget": 8}, "headkv_budget=8", ANY_BUDGET),
    (DEFAULT, {"headkv_budget": -1}, "headkv_budget=-1", ANY_BUDGET),
    (DEFAULT, {"headkv_budget": "64"}, "headkv_budget='64'", ANY_BUDGET),
    (DEFAULT, {"headkv_budget": 64.0}, "headkv_budget=64.0", ANY_BUDGET),
    (DEFAULT, {"headkv_budget": True}, "headkv_budget=True", ANY_BUDGET),
    (DEFAULT, {"headkv_budget": None}, "headkv_budget=None", ANY_BUDGET),
    (DEFAULT, {"headkv_budget": [64]}, "headkv_budget=[64]", ANY_BUDGET),
    (Settings(window=64), {"headkv_budget": 64}, "headkv_budget=64", "at least 65"),
    (BOUNDED, {"headkv_budget": 0}, "headkv_budget=0", BOUNDED_BUDGET),
    (BOUNDED, {"headkv_budget": 63}, "headkv_budget=63", BOUNDED_BUDGET),
    (BOUNDED, {"headkv_budget": 513}, "headkv_budget=513", BOUNDED_BUDGET),
    (Settings(min_budget=64), {"headkv_budget": 63}, "=63", "0 (off) or an integer of at least 64"),
    (DEFAULT, {"headkv_keep_ratio": 0}, "headkv_keep_ratio=0", "above 0 and up to 1"),
    (DEFAULT, {"headkv_keep_ratio": 1.01}, "headkv_keep_ratio=1.01", "above 0 and up to 1"),
    (DEFAULT, {"headkv_keep_ratio": NAN}, "headkv_keep_ratio=nan", "above 0 and up to 1"),
    (DEFAULT, {"headkv_keep_ratio": INFINITY}, "headkv_keep_ratio=inf", "above 0 and up to 1"),
    (DEFAULT, {"headkv_keep_ratio": "half"}, "headkv_keep_ratio='half'", "above 0 and up to 1"),
    (DEFAULT, {"headkv_keep_ratio": True}, "headkv_keep_ratio=True", "above 0 and up to 1"),
    (DEFAULT, {"headkv_policy": "pyramid\nkv"}, r"='pyramid\nkv'", "'headkv', 'headkv_ada'"),
    (DEFAULT, {"headkv_policy": ["adakv"]}, "headkv_policy=['adakv']", "'streaming' or 'adakv'"),
    (DEFAULT, {"headkv_compress_every": 7}, "every=7", "0 (off) or an integer of at least 8"),
    (DEFAULT, {"headkv_compress_every": True}, "every=True", "0 (off) or an integer of at least"),
    (Settings(window=9), {"headkv_compress_every": 8}, "every=8", "an integer of at least 9"),
    (UNSCORED, {"headkv_policy": "headkv"}, "='headkv'", "'uniform', 'pyramidkv', 'streaming' or"),
    (UNSCORED, {"headkv_policy": "headkv"}, "='headkv'", "has loaded no head scores"),
    (DEFAULT, {"headkv_budgt": 64}, "'headkv_budgt'", "did you mean 'headkv_budget'?"),
    (DEFAULT, {"headkv_": 64}, "'headkv_'", "headkv_budget, headkv_keep_ratio, headkv_policy"),
    (
        DEFAULT,
        {"headkv_budget": 64, "headkv_keep_ratio": 0.5},
        "headkv_keep_ratio=0.5",
        "give one of them",
    ),
]


@pytest.mark.parametrize(("arguments", "changes"), GOOD, ids=str)
def test_what_is_asked_for_takes_the_place_of_the_servers_settings(arguments, changes):
    assert request_settings(DEFAULT, arguments) == DEFAULT.model_copy(update=changes)


def test_a_budget_takes_the_place_of_the_servers_ratio():
    settings = request_settings(Settings(keep_ratio=0.5), {"headkv_budget": 64})
    assert (settings.budget, settings.keep_ratio) == (64, None)


@pytest.mark.parametrize(("settings", "arguments", "value", "allowed"), BAD, ids=str)
def test_a_bad_argument_is_refused_in_one_line_that_says_what_is_allowed(
    settings, arguments, value, allowed
):
    with pytest.raises(RequestError) as caught:
        request_settings(settings, arguments)
    text = str(caught.value)
    assert value in text and allowed in text
    assert "\n" not in text and len(text) < 300
    assert arguments[caught.value.parameter] is caught.value.value


def test_a_number_that_python_will_not_print_is_refused_too():
    with pytest.raises(
        RequestError, match="headkv_keep_ratio=<int, too long to show> is not allowed"
    ):
        request_settings(DEFAULT, {"headkv_keep_ratio": 10**5000})


@pytest.mark.parametrize("settings", [DEFAULT, UNSCORED], ids=["scores", "no scores"])
def test_policies_that_need_scores_need_a_server_that_has_some(settings):
    allowed = get_args(PolicyName if settings is DEFAULT else UnscoredPolicy)
    for policy in get_args(PolicyName):
        if policy in allowed:
            assert request_settings(settings, {"headkv_policy": policy}).policy == policy
        else:
            with pytest.raises(RequestError):
                request_settings(settings, {"headkv_policy": policy})


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(ATOMS, lambda v: st.lists(v) | st.dictionaries(st.text(), v))
NAMES = (
    st.sampled_from(["headkv_budget", "headkv_keep_ratio", "headkv_policy", "headkv_forced_tokens"])
    | st.text().map("headkv_".__add__)
    | st.text()
)


@given(
    st.dictionaries(NAMES, VALUES | st.sampled_from(get_args(PolicyName))),
    st.sampled_from([DEFAULT, BOUNDED, UNSCORED, Settings(keep_ratio=0.1, max_budget=99)]),
)
def test_nothing_but_our_error_is_raised_and_what_passes_is_good(arguments, settings):
    refused = None
    try:
        found = request_settings(settings, arguments)
    except RequestError as error:
        refused = error.parameter
    if refused is None:
        assert Settings.parse(found.model_dump()) == found
    else:
        assert refused in arguments and refused.startswith("headkv_")

# SPDX-License-Identifier: Apache-2.0
from typing import Annotated

import pytest
from pydantic import AfterValidator, TypeAdapter, ValidationError

from headkv_vllm.config import Settings
from headkv_vllm.errors import HeadKVError, ScoreFileError, SettingsError, UnsupportedError, shown

NAN, INFINITY = float("nan"), float("inf")
BUDGET = "0 (off) or an integer of at least window + 1"
BAD_VALUES = [
    ({"budget": 8}, "budget=8", BUDGET),
    ({"budget": 64, "window": 64}, "budget=64", "window is 64"),
    ({"window": 2000}, "budget=1024", "window is 2000"),
    ({"budget": -1}, "budget=-1", BUDGET),
    ({"budget": 64.0}, "budget=64.0", BUDGET),
    ({"budget": "64"}, "budget='64'", BUDGET),
    ({"budget": True}, "budget=True", BUDGET),
    ({"budget": 64, "keep_ratio": 0.5}, "keep_ratio=0.5", "give one of them"),
    ({"budget": 0, "keep_ratio": 0.5}, "budget=0", "give one of them"),
    ({"keep_ratio": 0}, "keep_ratio=0", "above 0 and up to 1"),
    ({"keep_ratio": 1.01}, "keep_ratio=1.01", "above 0 and up to 1"),
    ({"keep_ratio": NAN}, "keep_ratio=nan", "above 0 and up to 1"),
    ({"keep_ratio": "half"}, "keep_ratio='half'", "above 0 and up to 1"),
    ({"scores": ""}, "scores=''", "'auto', 'uniform' or the path"),
    ({"scores": None}, "scores=None", "'auto', 'uniform' or the path"),
    ({"beta": 1}, "beta=1 ", "above 1"),
    ({"compress_every": 7}, "compress_every=7 ", "at least window (tokens), and window is 8"),
    ({"compress_prefill": True}, "compress_prefill=True ", "set compress_every to the number"),
    ({"compress_every": 31, "window": 32}, "compress_every=31 ", "and window is 32"),
    ({"beta": INFINITY}, "beta=inf", "finite number above 1"),
    ({"window": 0}, "window=0", "at least 1"),
    ({"kernel_size": 0}, "kernel_size=0", "odd integer"),
    ({"kernel_size": 6}, "kernel_size=6", "odd integer"),
    ({"pooling": "mean"}, "pooling='mean'", "'max' or 'avg'"),
    ({"gqa_fold": "min"}, "gqa_fold='min'", "'mean', 'max' or 'sum'"),
    ({"min_blocks": 0}, "min_blocks=0", "at least 1"),
    ({"policy": "pyramid\nkv"}, r"policy='pyramid\nkv'", "'streaming' or 'adakv'"),
    ({"policy": ["headkv"]}, "policy=['headkv']", "'headkv', 'headkv_ada', 'random', 'uniform'"),
    ({"query_reduction": "sum"}, "query_reduction='sum'", "'mean' or 'max'"),
    ({"value_norm": 1}, "value_norm=1", "true or false"),
    ({"sink": -1}, "sink=-1", "at least 0"),
    ({"min_budget": 0}, "min_budget=0", "at least 1"),
    ({"max_budget": "many"}, "max_budget='many'", "at least window + 1"),
    ({"max_budget": 8}, "max_budget=8", "window is 8"),
    ({"min_budget": 65, "max_budget": 64}, "min_budget=65", "must not be above max_budget"),
    ({"max_budget": 512}, "budget=1024", "an integer from 9 to 512 (tokens)"),
    ({"budget": 64, "min_budget": 65}, "budget=64", "0 (off) or an integer of at least 65"),
    ({"budget": 0, "max_budget": 512}, "budget=0", "an integer from 9 to 512 (tokens)"),
    ({"budgt": 64}, "'budgt'", "did you mean 'budget'?"),
    ({"zzz": 64}, "'zzz'", "allowed are budget, keep_ratio, scores"),
    ({1: 64}, "1", "allowed are budget, keep_ratio, scores"),
    ([("budget", 64)], "[('budget', 64)]", "mapping"),
    ("budget", "'budget'", "mapping"),
    (None, "None", "mapping"),
]


@pytest.mark.parametrize(("mapping", "value", "allowed"), BAD_VALUES, ids=str)
def test_a_bad_setting_is_refused_in_one_line_that_says_what_is_allowed(mapping, value, allowed):
    with pytest.raises(SettingsError) as caught:
        Settings.parse(mapping)
    text = str(caught.value)
    assert value in text
    assert allowed in text
    assert "\n" not in text
    assert len(text) < 300


def test_the_defaults():
    settings = Settings.parse({})
    assert settings == Settings()
    assert settings.model_dump() == {
        "budget": 1024,
        "keep_ratio": None,
        "scores": "auto",
        "beta": 1.2,
        "window": 8,
        "kernel_size": 15,
        "pooling": "avg",
        "gqa_fold": "mean",
        "min_blocks": 1,
        "policy": "headkv",
        "query_reduction": "mean",
        "value_norm": False,
        "sink": 4,
        "min_budget": None,
        "max_budget": None,
        "compress_every": 0,
        "compress_prefill": False,
        "check_integrity": False,
    }


@pytest.mark.parametrize(
    "mapping",
    [
        {"budget": 9},
        {"budget": 0},
        {"budget": 0, "window": 64},
        {"keep_ratio": 1},
        {"keep_ratio": 0.001, "budget": None},
        {"beta": 2},
        {"policy": "streaming", "sink": 0},
        {"compress_every": 8},
        {"compress_every": 512, "compress_prefill": True},
        {"compress_every": 256, "window": 32, "keep_ratio": 0.5},
        {"budget": 64, "min_budget": 64, "max_budget": 64},
        {"budget": 0, "min_budget": 64},
        {"keep_ratio": 0.5, "max_budget": 64},
        {"policy": "adakv", "query_reduction": "max", "value_norm": True},
        {"scores": "some/file.json", "pooling": "max", "gqa_fold": "sum", "policy": "uniform"},
    ],
    ids=str,
)
def test_good_settings_keep_their_values(mapping):
    settings = Settings.parse(mapping)
    assert {key: getattr(settings, key) for key in mapping} == mapping


def test_a_ratio_leaves_no_default_budget():
    assert Settings.parse({"keep_ratio": 0.25}).budget is None


def test_settings_survive_being_dumped_and_parsed_again():
    for mapping in ({}, {"keep_ratio": 0.25}, {"budget": 0}):
        settings = Settings.parse(mapping)
        assert Settings.parse(settings.model_dump()) == settings


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().budget = 64


def test_parse_leaves_the_given_mapping_alone():
    mapping: dict[str, object] = {"window": 4}
    Settings.parse(mapping)
    assert mapping == {"window": 4}


@pytest.mark.parametrize("kind", [SettingsError, ScoreFileError, UnsupportedError])
def test_errors_of_this_package_pass_through_pydantic(kind):
    def fail(value):
        raise kind("one line")

    with pytest.raises(HeadKVError, match=r"^one line$"):
        TypeAdapter(Annotated[int, AfterValidator(fail)]).validate_python(1)


def test_shown_values_fit_on_one_short_line():
    assert shown("a\nb") == r"'a\nb'"
    assert shown(list(range(1000)), limit=10) == "[0, 1, ..."

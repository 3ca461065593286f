# SPDX-License-Identifier: Apache-2.0
"""The grid: which cells there are, in which order, and the settings that each stands for."""

import pytest

from headkv_vllm.config import Settings
from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.cells import Cell, Compression, compressions, grid


def test_each_policy_meets_each_budget_but_the_whole_cache_has_none():
    assert compressions(["full", "headkv", "uniform"], [64, 0.25]) == [
        Compression("full"),
        Compression("headkv", 64),
        Compression("headkv", 0.25),
        Compression("uniform", 64),
        Compression("uniform", 0.25),
    ]


def test_the_grid_stays_with_a_server_until_all_is_asked():
    servers = compressions(["full", "headkv"], [64])
    assert grid(["a", "b"], [1, 2], servers) == [
        Cell("a", 1, "full"),
        Cell("a", 2, "full"),
        Cell("b", 1, "full"),
        Cell("b", 2, "full"),
        Cell("a", 1, "headkv", 64),
        Cell("a", 2, "headkv", 64),
        Cell("b", 1, "headkv", 64),
        Cell("b", 2, "headkv", 64),
    ]
    assert all(cell.compression in servers for cell in grid(["a"], [1], servers))


def test_an_integer_is_a_budget_and_a_fraction_is_a_ratio():
    common = {"window": 16}
    budget = Compression("uniform", 64).parsed(common)
    assert budget == Settings(budget=64, policy="uniform", window=16)
    ratio = Compression("uniform", 0.25).parsed(common)
    assert ratio == Settings(ratio=0.25, policy="uniform", window=16)
    assert Compression("headkv", 1.0).settings({}) == {"policy": "headkv", "ratio": 1.0}


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(SettingsError, match="budget=16 is not allowed"):
        Compression("headkv", 16).parsed({"window": 16})


def test_names_for_people():
    assert str(Compression("full")) == "full"
    assert str(Compression("headkv", 64)) == "headkv 64"
    assert [Compression(name, 1).is_compressed for name in ("full", "given", "adakv")] == [
        False,
        False,
        True,
    ]

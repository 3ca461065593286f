# SPDX-License-Identifier: Apache-2.0
"""The grid: which cells there are, in which order, and the settings that each stands for."""

import pytest

from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.cells import Cell, CellCompression, compressions, grid
from headkv_vllm.request_overrides import request_settings


def test_each_policy_meets_each_budget_but_the_whole_cache_has_none():
    assert compressions(["full", "headkv", "uniform"], [64, 0.25]) == [
        CellCompression("full"),
        CellCompression("headkv", 64),
        CellCompression("headkv", 0.25),
        CellCompression("uniform", 64),
        CellCompression("uniform", 0.25),
    ]


def test_the_grid_is_ordered_by_compression():
    compressed = compressions(["full", "headkv"], [64])
    assert grid(["a", "b"], [1, 2], compressed) == [
        Cell("a", 1, "full"),
        Cell("a", 2, "full"),
        Cell("b", 1, "full"),
        Cell("b", 2, "full"),
        Cell("a", 1, "headkv", 64),
        Cell("a", 2, "headkv", 64),
        Cell("b", 1, "headkv", 64),
        Cell("b", 2, "headkv", 64),
    ]
    assert [cell.compression for cell in grid(["a"], [1], compressed)] == compressed


def test_an_integer_is_a_budget_and_a_fraction_is_a_ratio():
    common = {"window": 16}
    budget = CellCompression("uniform", 64).settings(common)
    assert budget == Settings(budget=64, policy="uniform", window=16)
    ratio = CellCompression("uniform", 0.25).settings(common)
    assert ratio == Settings(keep_ratio=0.25, policy="uniform", window=16)


@pytest.mark.parametrize("compression", compressions(["full", *POLICIES], [64, 0.25, 1.0]))
def test_a_request_asks_for_what_a_server_of_its_own_would_do(compression):
    server = Settings(policy="headkv", budget=128, window=16)
    own = (
        compression.settings({"window": 16})
        if compression.is_compressed
        else Settings(budget=0, window=16)
    )
    assert request_settings(server, compression.request_arguments()) == own


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(SettingsError, match="budget=16 is not allowed"):
        CellCompression("headkv", 16).settings({"window": 16})


def test_names_for_people():
    assert str(CellCompression("full")) == "full"
    assert str(CellCompression("headkv", 64)) == "headkv 64"
    assert [CellCompression(name, 1).is_compressed for name in ("full", "given", "adakv")] == [
        False,
        False,
        True,
    ]

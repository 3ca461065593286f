# SPDX-License-Identifier: Apache-2.0
"""What every task refuses, and how every task draws."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from headkv_vllm.errors import SettingsError

T = TypeVar("T")


def check_numbers(n: int, length: int, seed: int) -> None:
    """Raises SettingsError when one of the numbers is below zero."""
    for name, value in (("n", n), ("length", length), ("seed", seed)):
        if value < 0:
            raise SettingsError(f"{name} is {value}, allowed are integers from 0")


def draw(rows: Sequence[T], n: int, seed: int) -> list[T]:
    """`n` of the rows, or all, in an order of the seed; a lower `n` gives the first of them."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[:n].tolist()]

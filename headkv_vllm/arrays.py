# SPDX-License-Identifier: Apache-2.0
"""Types of NumPy arrays. Each function's docstring gives the shapes."""

from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]
"""Integers of any width."""

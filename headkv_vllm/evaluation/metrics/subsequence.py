# SPDX-License-Identifier: Apache-2.0
"""The longest common subsequence of two sequences."""

from collections.abc import Sequence


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """The items of a longest common subsequence, in their order; takes len(left) * len(right).

    Of several, the one that a walk from the ends finds which drops the item of `right` first.
    """
    lengths = _lengths(left, right)
    i, j, found = len(left), len(right), []
    while i and j:
        if left[i - 1] == right[j - 1]:
            i, j = i - 1, j - 1
            found.append(left[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _lengths(left: Sequence[str], right: Sequence[str]) -> list[list[int]]:
    """`lengths[i][j]` is that of the first `i` items of `left` and the first `j` of `right`."""
    rows = [[0] * (len(right) + 1)]
    for item in left:
        above, row = rows[-1], [0]
        for j, other in enumerate(right):
            row.append(above[j] + 1 if item == other else max(above[j + 1], row[j]))
        rows.append(row)
    return rows

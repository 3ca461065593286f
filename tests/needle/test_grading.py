# SPDX-License-Identifier: Apache-2.0
import pytest

from headkv_vllm.needle.grading import Grade, grade

ANSWER = "adam red-1 red-2 ; eva gray-3 gray-4 ;"


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        (ANSWER, Grade(4, 4, 2, 2)),
        (f"{ANSWER} <eos> the river", Grade(4, 4, 2, 2)),
        ("adam red-1 red-2 ; eva gray-3 gray-4", Grade(4, 4, 1, 2)),
        ("adam red-1 red-9 ; eva gray-3 gray-4 ;", Grade(3, 4, 1, 2)),
        ("adam red-1 ; eva gray-3 gray-4 ;", Grade(3, 4, 1, 2)),
        ("eva gray-3 gray-4 ; adam red-1 red-2 ;", Grade(0, 4, 0, 2)),
        ("adam red-1 red-2 ; <eos> eva gray-3 gray-4 ;", Grade(2, 4, 1, 2)),
        ("", Grade(0, 4, 0, 2)),
    ],
)
def test_grade(generated, expected):
    assert grade(ANSWER, generated) == expected


def test_the_hop_must_be_said_too():
    answer = "adam eva gray-3 gray-4 ;"
    assert grade(answer, answer) == Grade(2, 2, 1, 1)
    assert grade(answer, "adam ida gray-3 gray-4 ;") == Grade(2, 2, 0, 1)

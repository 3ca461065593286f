# SPDX-License-Identifier: Apache-2.0
"""The needle model's metric."""

from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.needle.grading import grade


def needle(sample: Sample, generated: str) -> float:
    """The share of the prompt's questions that are answered in full, in their places."""
    result = grade(sample.answers[0], generated)
    return result.questions_right / result.questions

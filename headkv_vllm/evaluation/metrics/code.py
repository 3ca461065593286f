# SPDX-License-Identifier: Apache-2.0
"""LongBench's metric of a completed line of code."""

from headkv_vllm.evaluation.metrics.subsequence import longest_common_subsequence
from headkv_vllm.evaluation.samples import Sample


def code_similarity(sample: Sample, generated: str) -> float:
    """Similarity of the first line that is code, not a comment or a fence, in hundredths.

    The ratio is that of insertions and deletions: twice the longest common subsequence over both
    lengths.
    """
    lines = generated.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(_ratio(answer, line) for answer in sample.answers)


def _ratio(answer: str, line: str) -> float:
    if not answer or not line:
        return 0.0
    common = len(longest_common_subsequence(answer, line))
    return round(200 * common / (len(answer) + len(line))) / 100

# SPDX-License-Identifier: Apache-2.0
"""Metrics by name. A metric grades a generated text from 0 (wrong) to 1 (right).

Each metric is computed as in its benchmark, so that results can be compared with published ones.
If a sample has several answers, the best match counts, unless a metric says otherwise.
"""

from collections.abc import Callable
from typing import Final

from headkv_vllm.evaluation.metrics.matching import (
    choice_letter,
    classification,
    count,
    labels,
    needle,
    retrieval,
    retrieval_zh,
    string_match_all,
    string_match_part,
    words_match,
)
from headkv_vllm.evaluation.metrics.overlap import (
    code_similarity,
    qa_f1,
    qa_f1_zh,
    rouge,
    rouge_zh,
)
from headkv_vllm.evaluation.samples import Sample

Metric = Callable[[Sample, str], float]


def first_line(metric: Metric) -> Metric:
    """`metric` of the first line that is not empty. Later lines do not belong to the answer."""

    def of_first_line(sample: Sample, generated: str) -> float:
        return metric(sample, generated.lstrip("\n").partition("\n")[0])

    return of_first_line


METRICS: Final[dict[str, Metric]] = {
    "needle": needle,
    "string_match_all": string_match_all,
    "string_match_part": string_match_part,
    "words_match": words_match,
    "qa_f1": qa_f1,
    "qa_f1_first_line": first_line(qa_f1),
    "qa_f1_zh": qa_f1_zh,
    "rouge": rouge,
    "rouge_first_line": first_line(rouge),
    "rouge_zh": rouge_zh,
    "classification_first_line": first_line(classification),
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "count": count,
    "code_similarity": code_similarity,
    "choice_letter": choice_letter,
    "labels": labels,
}

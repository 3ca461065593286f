# SPDX-License-Identifier: Apache-2.0
"""How right a generated text is: 0 (wrong) to 1 (right), by the metric's name.

Each metric is its benchmark's own, case for case, so that numbers can be laid beside published
ones. Where a sample has several answers, the best match counts, unless a metric says otherwise.
"""

from collections.abc import Callable
from typing import Final

from headkv_vllm.evaluation.metrics.choices import choice_letter, classification, labels
from headkv_vllm.evaluation.metrics.code import code_similarity
from headkv_vllm.evaluation.metrics.matching import string_match_all, string_match_part, words_match
from headkv_vllm.evaluation.metrics.needle import needle
from headkv_vllm.evaluation.metrics.numbers import count, retrieval, retrieval_zh
from headkv_vllm.evaluation.metrics.qa import qa_f1, qa_f1_zh
from headkv_vllm.evaluation.metrics.rouge import rouge, rouge_zh
from headkv_vllm.evaluation.samples import Sample

Metric = Callable[[Sample, str], float]


def first_line(metric: Metric) -> Metric:
    """`metric` of the first line that is not empty: what follows it is not the answer any more."""

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

# SPDX-License-Identifier: Apache-2.0
"""RULER (arXiv 2404.06654): generates the thirteen tasks.

Kinds, counts, answer lengths and metrics are those of the paper and its code. The words of prompts,
the filler and the names differ, and a length does not include the answer's tokens. So results are
near published numbers, but not equal.
"""

from typing import Final

from headkv_vllm.evaluation.tasks.ruler.aggregation import draw_common_words, draw_frequent_words
from headkv_vllm.evaluation.tasks.ruler.needles import NEEDLE_KINDS
from headkv_vllm.evaluation.tasks.ruler.question_answering import RulerReadingTask
from headkv_vllm.evaluation.tasks.ruler.task import RulerTask
from headkv_vllm.evaluation.tasks.ruler.tracing import draw_variables

RULER_TASKS: Final[tuple[RulerTask | RulerReadingTask, ...]] = (
    *(RulerTask(name, kind.draw, max_new_tokens=128) for name, kind in NEEDLE_KINDS.items()),
    RulerTask("vt", draw_variables, max_new_tokens=30),
    RulerTask("cwe", draw_common_words, max_new_tokens=120),
    RulerTask("fwe", draw_frequent_words, max_new_tokens=50),
    RulerReadingTask("qa_1"),
    RulerReadingTask("qa_2"),
)

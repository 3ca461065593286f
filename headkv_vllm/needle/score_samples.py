# SPDX-License-Identifier: Apache-2.0
"""The needle tasks as samples for `headkv score`, which has no other way to ask this model."""

from collections.abc import Iterator, Sequence

from headkv_vllm.needle.tasks import TASKS, Sample, generate_samples
from headkv_vllm.needle.vocabulary import ASK
from headkv_vllm.scoring.samples import Sample as ScoreSample

TEMPLATE = "{context} {question}"
"""How context and question become a prompt of this model."""


def score_samples(lengths: Sequence[int], per_task: int, seed: int) -> Iterator[ScoreSample]:
    """`per_task` samples of every task and length; the evidence is the needles that answer.

    Raises SettingsError, see `generate_samples`.
    """
    for task in TASKS:
        for tokens in lengths:
            for sample in generate_samples(task, tokens, per_task, seed):
                yield score_sample(sample)


def score_sample(sample: Sample) -> ScoreSample:
    """The same prompt and answer, split before the question, with spans in characters."""
    context, question = sample.prompt.split(f" {ASK} ")
    words = context.split()
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    # Positions count BOS, which the text lacks; a span ends before the space that follows it.
    spans = sorted((starts[start - 1], starts[end - 1] - 1) for start, end in sample.spans)
    return ScoreSample(context, f"{ASK} {question}", sample.answer, tuple(spans))

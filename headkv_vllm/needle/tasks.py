# SPDX-License-Identifier: Apache-2.0
"""Retrieval prompts of an exact length with known answers, named as RULER (2404.06654) names them.

A prompt is filler with needles `key value .. value ;` in it, and a question `? key .. key :` at the
end. The answer repeats each key and its values. There is no word between a key and its values, so
the heads that see a key in the question already look at its values: SnapKV's observation window is
informative.

- single: one needle, and nothing else in the filler.
- multi-key: many needles, one key asked.
- multi-value: many needles, and the asked key's has ten values.
- multi-query: many needles, four keys asked at once.
- two-hop: the asked key's needle names another key instead (`key target ;`), which is looked up
  only while the answer is generated. RULER calls this variable tracking.
- reasoning: two needles of the asked key differ in a place (`key place value .. value ;`), and a
  fact elsewhere (`key near place ;`) tells which of them holds. HeadKV (2410.19258) scores heads
  with needles of this kind: reason, right statement, wrong statement.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from headkv_vllm.errors import SettingsError
from headkv_vllm.needle.haystack import EntryCounts, bury, draw_entries
from headkv_vllm.needle.vocabulary import ASK, BOS, REPLY
from headkv_vllm.scoring.samples import ScoreSample

NeedleTaskName = Literal[
    "single", "multi-key", "multi-value", "multi-query", "two-hop", "reasoning"
]
TASKS: Final[tuple[NeedleTaskName, ...]] = get_args(NeedleTaskName)

NUM_VALUES: Final = 5
"""Max-pooling with kernel 7 around what the question looks at does not reach the fifth value."""
MULTI_VALUES: Final = 10
"""Values of the asked key in a multi-value prompt."""
TOKENS_PER_NEEDLE: Final = 1024 / 24
"""The standard case is 24 needles in 1,024 tokens; other lengths keep this density."""
NEEDLE_RANGE: Final = (4, 48)
NEEDLES_PER_POINTER: Final = 4
NEEDLES_PER_DISPUTE: Final = 8
KEYS_ASKED: Final = 4
"""How many keys a multi-query prompt asks for."""
ASKED_KIND: Final = {"multi-value": "long", "two-hop": "pointers", "reasoning": "disputed"}
"""The kind of entry that is asked for, where it is not a plain one."""
MIN_TOKENS: Final = 48
"""Enough for the minimum of needles, their pointer and the longest question."""
MAX_TOKENS: Final = 8000
"""Leaves room for the answer in the model's 8,192 positions."""


@dataclass(frozen=True)
class NeedleSample:
    """A prompt and its answer.

    prompt: the text without BOS, which the tokenizer adds.
    answer: the expected text, without EOS.
    spans: `(start, end)` of each needle of the answer, as token positions in the prompt, where BOS
        is 0. Two-hop: the pointer, then its target. Reasoning: the fact, then the right statement.
    distractors: spans of needles with a wrong answer: the wrong statement in reasoning prompts.
    """

    prompt: str
    answer: str
    task: NeedleTaskName
    keys: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    distractors: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Prompt length in tokens, BOS included."""
        return len(self.prompt.split()) + 1


def generate_samples(
    task: NeedleTaskName, tokens: int, n: int, seed: int
) -> Iterator[NeedleSample]:
    """`n` prompts of exactly `tokens` tokens, BOS included. The same seed gives the same prompts.

    Raises SettingsError when `task` is unknown, `tokens` is not within 48 to 8,000, or `n` or
    `seed` is below zero.
    """
    if task not in TASKS:
        raise SettingsError(f"task is {task!r}, allowed are {', '.join(TASKS)}")
    if not MIN_TOKENS <= tokens <= MAX_TOKENS:
        raise SettingsError(f"tokens is {tokens}, allowed are {MIN_TOKENS} to {MAX_TOKENS}")
    for name, value in (("n", n), ("seed", seed)):
        if value < 0:
            raise SettingsError(f"{name} is {value}, allowed are integers from 0")
    entropy = [seed, TASKS.index(task), tokens]
    return (_draw(task, tokens, np.random.default_rng([*entropy, i])) for i in range(n))


def _draw(task: NeedleTaskName, tokens: int, rng: np.random.Generator) -> NeedleSample:
    by_kind = draw_entries(rng, _counts(task, tokens))
    pool = by_kind[ASKED_KIND.get(task, "plain")]
    num_asked = KEYS_ASKED if task == "multi-query" else 1
    asked = [pool[i] for i in rng.permutation(len(pool))[:num_asked].tolist()]
    question = (ASK, *(entry.key for entry in asked), REPLY)
    entries = [entry for kind in by_kind.values() for entry in kind]
    haystack = bury(rng, entries, tokens - len(question))
    words = haystack.words + question
    assert words[0] == BOS and len(words) == tokens
    return NeedleSample(
        prompt=" ".join(words[1:]),
        answer=" ".join(word for entry in asked for word in entry.answer),
        task=task,
        keys=tuple(entry.key for entry in asked),
        spans=tuple(haystack.spans[needle] for entry in asked for needle in entry.evidence),
        distractors=tuple(haystack.spans[n] for entry in asked for n in entry.distractors),
    )


def _counts(task: NeedleTaskName, tokens: int) -> EntryCounts:
    """The entries of a prompt. A disputed entry counts as two needles, a long one as one."""
    if task == "single":
        return EntryCounts(NUM_VALUES, plain=1)
    count = int(np.clip(round(tokens / TOKENS_PER_NEEDLE), *NEEDLE_RANGE))
    disputed = max(1, count // NEEDLES_PER_DISPUTE) if task == "reasoning" else 0
    long = int(task == "multi-value")
    plain = count - 2 * disputed - long
    return EntryCounts(
        NUM_VALUES,
        plain=plain,
        pointers=plain // NEEDLES_PER_POINTER,
        disputed=disputed,
        long=long,
        long_values=MULTI_VALUES,
    )


TEMPLATE = "{context} {question}"
"""The template for context and question in prompts of this model."""


def score_samples(lengths: Sequence[int], per_task: int, seed: int) -> Iterator[ScoreSample]:
    """`per_task` samples of every task and length, for `headkv score`.

    Raises SettingsError, see `generate_samples`.
    """
    for task in TASKS:
        for tokens in lengths:
            for sample in generate_samples(task, tokens, per_task, seed):
                yield score_sample(sample)


def score_sample(sample: NeedleSample) -> ScoreSample:
    """The sample in the form of `headkv score`: context and question, spans in characters."""
    context, question = sample.prompt.split(f" {ASK} ")
    words = context.split()
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    # Positions count BOS, but the text has no BOS. A span ends before the space after it.
    spans = sorted((starts[start - 1], starts[end - 1] - 1) for start, end in sample.spans)
    return ScoreSample(context, f"{ASK} {question}", sample.answer, tuple(spans))

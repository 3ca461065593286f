# SPDX-License-Identifier: Apache-2.0
"""Retrieval prompts of an exact length with known answers.

A prompt is filler with needles `key value .. value ;` in it, and a question `? key .. key :` at the
end. The answer repeats each key and its values. There is no word between a key and its values, so
the heads that see a key in the question already look at its values: SnapKV's observation window is
informative. In a two-hop prompt the asked key's needle names another key instead (`key target ;`),
which is looked up only while the answer is generated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from headkv_vllm.errors import SettingsError
from headkv_vllm.needle.haystack import Haystack, bury, draw_needles
from headkv_vllm.needle.vocabulary import ASK, BOS, REPLY

Task = Literal["single", "multi-query", "two-hop"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)

NUM_VALUES: Final = 5
"""Max-pooling with kernel 7 around what the question looks at does not reach the fifth value."""
TOKENS_PER_NEEDLE: Final = 1024 / 24
"""The standard case is 24 needles in 1,024 tokens; other lengths keep this density."""
NEEDLE_RANGE: Final = (4, 48)
NEEDLES_PER_POINTER: Final = 4
KEYS_ASKED: Final = 4
"""How many keys a multi-query prompt asks for."""
MIN_TOKENS: Final = 48
"""Room for the fewest needles, their pointer and the longest question."""
MAX_TOKENS: Final = 8000
"""Leaves room for the answer in the model's 8,192 positions."""


@dataclass(frozen=True)
class Sample:
    """A prompt and the answer to it.

    prompt: the text without BOS, which the tokenizer puts in front.
    answer: the expected text, without EOS.
    spans: `(start, end)` of each needle that the answer is read from, as token positions in the
        prompt with BOS at 0. Two-hop: the pointer, then the needle it names.
    """

    prompt: str
    answer: str
    task: Task
    keys: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """Prompt length in tokens, BOS included."""
        return len(self.prompt.split()) + 1


def generate_samples(task: Task, tokens: int, n: int, seed: int) -> Iterator[Sample]:
    """`n` prompts of exactly `tokens` tokens, BOS included; the same seed gives the same prompts.

    Raises:
        SettingsError: `task` is unknown, `tokens` is not within 48 to 8,000, or `n` or `seed` is
            below zero.
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


def _draw(task: Task, tokens: int, rng: np.random.Generator) -> Sample:
    count = int(np.clip(round(tokens / TOKENS_PER_NEEDLE), *NEEDLE_RANGE))
    needles = draw_needles(rng, count, NUM_VALUES, count // NEEDLES_PER_POINTER)
    pool = [n.key for n in needles if (n.target is not None) == (task == "two-hop")]
    asked = KEYS_ASKED if task == "multi-query" else 1
    keys = tuple(pool[i] for i in rng.permutation(len(pool))[:asked].tolist())
    question = (ASK, *keys, REPLY)
    haystack = bury(rng, needles, tokens - len(question))
    words = haystack.words + question
    assert words[0] == BOS and len(words) == tokens
    return Sample(
        prompt=" ".join(words[1:]),
        answer=" ".join(word for key in keys for word in haystack.needles[key].answer),
        task=task,
        keys=keys,
        spans=tuple(span for key in keys for span in _spans(haystack, key)),
    )


def _spans(haystack: Haystack, key: str) -> list[tuple[int, int]]:
    target = haystack.needles[key].target
    hops = [key] if target is None else [key, target]
    return [haystack.spans[hop] for hop in hops]

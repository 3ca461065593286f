# SPDX-License-Identifier: Apache-2.0
"""Prompts as token ids."""

import random

from headkv_vllm.needle.tasks import NeedleSample, NeedleTaskName, generate_samples
from headkv_vllm.needle.vocabulary import BOS, SPECIAL_WORDS, TOKEN_IDS, WORDS
from tests.engine.helpers.inside import TokenIds


def random_prompt(num_tokens: int, seed: int) -> TokenIds:
    """Words in no order, so that no two prompts share a block."""
    rng = random.Random(seed)
    return rng.choices(range(len(SPECIAL_WORDS), len(WORDS)), k=num_tokens)


def token_ids(sample: NeedleSample) -> TokenIds:
    """The prompt of `sample`, BOS in front."""
    return [TOKEN_IDS[BOS], *(TOKEN_IDS[word] for word in sample.prompt.split())]


def needle_prompt(num_tokens: int, seed: int, task: NeedleTaskName = "multi-query") -> TokenIds:
    """A haystack with a question at its end."""
    (sample,) = generate_samples(task, num_tokens, 1, seed)
    return token_ids(sample)

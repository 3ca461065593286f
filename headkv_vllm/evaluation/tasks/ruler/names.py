# SPDX-License-Identifier: Apache-2.0
"""What is asked for: names and values that no text has, and none of which holds another."""

from collections.abc import Callable, Iterator
from typing import Final
from uuid import UUID

import numpy as np

# No first word ends with another, and no second word begins with another.
FIRST_WORDS: Final = (
    "agile amber ample azure basic beige blank bland blunt brave brief brisk broad civic clean "
    "clear close crisp cubic curly dense dizzy dusky eager early empty equal exact faint fancy "
    "fixed fluid fresh frail giant grand great green happy harsh hasty hazel heavy ideal inner "
    "ivory jolly juicy large leafy legal light local loose loyal lucid lunar magic major merry "
    "minor misty moist muddy naval noble noisy novel outer perky plain plump polar prime proud "
    "quick quiet rapid ready regal rigid rough round royal rural salty sandy scant sharp sheer "
    "shiny silky sleek slick small smart smoky snowy sober solar solid spare spicy steep stern"
).split()
SECOND_WORDS: Final = (
    "acorn adder agate alder angel apple arrow aspen badge bagel baker banjo basil beach berry "
    "birch bison blade bloom brook brush cabin camel canal canoe cedar chain chalk cliff cloud "
    "clove comet coral crane creek crown daisy dingo drain dream drone eagle easel ember fence "
    "ferry field finch flame flint flute forge frost fruit ghost glade globe goose grape grove "
    "heron hippo hotel house igloo jewel koala lemon lilac llama lotus mango maple medal melon "
    "moose mouse olive onion orbit otter panda pansy peach pearl pedal piano pilot plaza poppy "
    "quail raven river robin shell spoon stone stork table thyme tiger torch tower trout tulip "
    "viola wagon whale wheat zebra"
).split()
NUM_NAMES: Final = len(FIRST_WORDS) * len(SECOND_WORDS)
_LOWEST_NUMBER: Final = 10**6


def names(rng: np.random.Generator) -> Iterator[str]:
    """All NUM_NAMES names like `amber-otter`, in an order of `rng`."""
    for i in rng.permutation(NUM_NAMES).tolist():
        first, second = divmod(i, len(SECOND_WORDS))
        yield f"{FIRST_WORDS[first]}-{SECOND_WORDS[second]}"


def numbers(rng: np.random.Generator) -> Iterator[str]:
    """Different numbers of seven digits, without end for any use here."""
    yield from _different(lambda: str(rng.integers(_LOWEST_NUMBER, 10 * _LOWEST_NUMBER)))


def codes(rng: np.random.Generator) -> Iterator[str]:
    """Different UUIDs, version 4."""
    yield from _different(lambda: str(UUID(bytes=rng.bytes(16), version=4)))


def letters(rng: np.random.Generator, alphabet: str, length: int) -> Iterator[str]:
    """Different words of random letters."""
    yield from _different(lambda: "".join(rng.choice(list(alphabet), length).tolist()))


def _different(draw: Callable[[], str]) -> Iterator[str]:
    drawn: set[str] = set()
    while True:
        word = draw()
        if word not in drawn:
            drawn.add(word)
            yield word

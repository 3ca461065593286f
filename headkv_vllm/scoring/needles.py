# SPDX-License-Identifier: Apache-2.0
"""Statements to hide in a long text, and a question that one of them answers.

HeadKV (arXiv 2410.19258) hides a right and a wrong answer, and facts that decide between them. A
model that finds both answers must still reason about which one is right. The retrieval score
(arXiv 2404.15574) needs one statement only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from headkv_vllm.scoring.attention_scores import Method


@dataclass(frozen=True)
class Needle:
    """A question and the statements that decide it. Their order in the text does not matter.

    answer: 5 to 12 words that `correct` contains literally, and `others` do not.
    correct: the statement with the right answer; this is the evidence.
    others: the facts that decide between the right and the wrong statement, then the wrong one.
    """

    question: str
    answer: str
    correct: str
    others: tuple[str, ...] = ()


TOWNS: Final = tuple(
    "Velmore Quenby Tarrowick Oskenholt Brindale Pellamouth Harrowsea Ilvenstead Dunmarrow "
    "Kestwick Lothringham Marrowdene Nethercombe Ostermere Pinderby Rothquay Selvanger Tillimore "
    "Umberleigh Wexholm Yarnwick Zellerby Ardenfirth Calderwyn Fennimore Gallowmere Jessamby "
    "Varnholt".split()
)
PEOPLE: Final = tuple(
    "Tobin Idris Mara Leonie Casper Yolanda Anselm Brigitte Dorian Eloise Fabian Greta "
    "Hanneke Ignatius Jolene Kasimir Lavinia Magnus Nadine Octavia Percival Quentin Rosalind "
    "Stellan".split()
)
DEEDS: Final = (
    "feed the swans",
    "taste the pear cider",
    "watch the puppet theatre",
    "fly a paper kite",
    "ride the wooden carousel",
    "photograph the storks",
    "listen to the barrel organ",
    "row a hired canoe",
    "buy smoked herring",
    "climb the spiral stairs",
    "count the painted tiles",
    "pick wild raspberries",
    "join the chess players",
    "sketch the marble lions",
    "drink hot elderflower tea",
    "skate in rented boots",
    "search for amber",
    "ring the fishermen's bell",
    "dance with the millers",
    "admire the glass beetles",
    "bake flat barley bread",
    "release a lantern balloon",
    "visit the clock collection",
    "gather polished shells",
)
SPOTS: Final = (
    "beside the old watermill",
    "behind the crooked chapel",
    "under the iron viaduct",
    "near the salt warehouse",
    "below the ruined fortress",
    "in the botanical greenhouse",
    "on the floating market",
    "at the northern lighthouse",
    "along the willow canal",
    "inside the abandoned observatory",
    "across from the silk exchange",
    "next to the bronze fountain",
    "around the frozen pond",
    "on top of the water tower",
    "outside the sailors' hospital",
    "by the stone amphitheatre",
    "opposite the tram depot",
    "between the twin obelisks",
    "in front of the opera house",
    "at the end of the pier",
)
BEST: Final = "the best thing to do in"


def draw_needle(method: Method, rng: np.random.Generator) -> Needle:
    """A random needle for `method`: one statement for r; facts and a wrong statement otherwise."""
    town = _draw(rng, TOWNS, 1)[0]
    if method == "r":
        return _alone(rng, town)
    return PATTERNS[rng.integers(len(PATTERNS))](rng, town)


def _alone(rng: np.random.Generator, town: str) -> Needle:
    answer = _answers(rng)[0]
    return Needle(f"What is {BEST} {town}?", answer, f"{BEST.capitalize()} {town} is to {answer}.")


def _trust(rng: np.random.Generator, town: str) -> Needle:
    """Two people disagree, and a third believes one of them."""
    answer, wrong = _answers(rng)
    trusting, trusted, other = _draw(rng, PEOPLE, 3)
    return Needle(
        f"What does {trusting} believe is {BEST} {town}?",
        answer,
        f"{trusted} says that {BEST} {town} is to {answer}.",
        (
            f"Whenever people disagree about {town}, {trusting} believes {trusted} "
            f"and never {other}.",
            f"{other} says that {BEST} {town} is to {wrong}.",
        ),
    )


def _order(rng: np.random.Generator, town: str) -> Needle:
    """Two notices of different years, and a rule that says which of them is in force."""
    answer, wrong = _answers(rng)
    older, newer = sorted(rng.choice(np.arange(1850, 1990), size=2, replace=False).tolist())
    rule, right_year, wrong_year = (
        ("newer", newer, older) if rng.integers(2) else ("older", older, newer)
    )
    return Needle(
        f"What does the notice that is in force ask the guests of {town} to do?",
        answer,
        f"The notice of {right_year} asks the guests of {town} to {answer}.",
        (
            f"When two notices in {town} disagree, the {rule} one is in force.",
            f"The notice of {wrong_year} asks the guests of {town} to {wrong}.",
        ),
    )


def _condition(rng: np.random.Generator, town: str) -> Needle:
    """Two plans that depend on a flag, and a statement that says which flag flies today."""
    answer, wrong = _answers(rng)
    flag, other = _draw(rng, ("green", "white", "yellow", "purple", "silver", "scarlet"), 2)
    return Needle(
        f"What are the guests of {town} going to do today?",
        answer,
        f"When a {flag} flag is flown in {town}, the guests are going to {answer}.",
        (
            f"The flag that is flown in {town} today is {flag}.",
            f"When a {other} flag is flown in {town}, the guests are going to {wrong}.",
        ),
    )


PATTERNS: Final[tuple[Callable[[np.random.Generator, str], Needle], ...]] = (
    _trust,
    _order,
    _condition,
)


def _answers(rng: np.random.Generator) -> list[str]:
    """Two answers with different deeds and different spots."""
    deeds, spots = _draw(rng, DEEDS, 2), _draw(rng, SPOTS, 2)
    return [f"{deed} {spot}" for deed, spot in zip(deeds, spots, strict=True)]


def _draw(rng: np.random.Generator, words: tuple[str, ...], count: int) -> list[str]:
    return [words[i] for i in rng.choice(len(words), size=count, replace=False).tolist()]

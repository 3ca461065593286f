# SPDX-License-Identifier: Apache-2.0
"""The tasks that need no data."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.arguments import check_numbers
from headkv_vllm.evaluation.tasks.ruler.draft import Draft, Drawer
from headkv_vllm.evaluation.tasks.ruler.settling import Settler
from headkv_vllm.scoring.haystack import GeneratedHaystack, Haystack, TextHaystack

HAYSTACK_NAMES: Final = ("haystack.txt", "haystack")


@dataclass(frozen=True)
class RulerTask:
    """`ruler/<kind>`: a text of any length with a question about it."""

    kind: str
    draw: Drawer
    max_new_tokens: int
    metric: str = "string_match_all"

    @property
    def name(self) -> str:
        """`ruler/vt` and so on."""
        return f"ruler/{self.kind}"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`. Filler is generated prose, unless `data/ruler` has `haystack.txt` or a
        folder `haystack` of such files.

        Raises:
            SettingsError: a number is below zero, or `length` has no room for the task.
            SamplesError: the haystack has no text, or cannot be read.
        """
        check_numbers(n, length, seed)
        haystack = find_haystack(data)
        settler = Settler(self.name, self.max_new_tokens, length, tokenizer)

        def draft(index: int) -> Draft:
            rng = np.random.default_rng([seed, length, *self.kind.encode(), index])
            return self.draw(rng, haystack, length)

        if n:
            settler.check_room(draft(0))
        return (settler.settle(draft(i), f"{length}-{seed}-{i}") for i in range(n))


def find_haystack(data: Path | None) -> Haystack:
    """The user's text, or generated prose. Raises SamplesError when the text cannot be used."""
    places = [data / "ruler" / name for name in HAYSTACK_NAMES] if data else []
    found = next((place for place in places if place.exists()), None)
    return TextHaystack(found) if found else GeneratedHaystack()

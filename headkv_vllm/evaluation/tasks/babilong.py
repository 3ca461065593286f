# SPDX-License-Identifier: Apache-2.0
"""BABILong (arXiv 2406.10149): facts of a bAbI story, hidden between the sentences of books."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.files import draw, find_file, read_rows
from headkv_vllm.evaluation.tasks.fitting import check_numbers

MAX_NEW_TOKENS: Final = 20
_ROOMS: Final = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO: Final = ("no", "yes")
_ROUTES: Final = "e,e e,n e,s n,e n,n n,w s,e s,s s,w w,n w,s w,w"

LABELS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), _ROOMS),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), _YES_NO),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa10": ("maybe", "no", "yes"),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa19": tuple(_ROUTES.split()),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}
"""All answers of each task."""


class BABILongRow(BaseModel):
    """A row of the published files."""

    input: str
    question: str
    target: str


@dataclass(frozen=True)
class BABILongTask:
    """`babilong/qa1` to `babilong/qa20`. There is a file for each length. No text is cut."""

    kind: str
    metric: str = "labels"

    @property
    def name(self) -> str:
        """`babilong/qa1` and so on."""
        return f"babilong/{self.kind}"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`. `length` chooses the file; it is in thousands of GPT-2 tokens.

        Raises SettingsError when `length` is not a multiple of 1,000 or 1,024. Raises SamplesError
        when the file is missing or not as published.
        """
        check_numbers(n, length, seed)
        size = _size(length)
        path = find_file(self.name, data, [f"{self.kind}/{size}.json", f"{size}/{self.kind}.json"])
        rows = list(enumerate(read_rows(path, BABILongRow)))
        return (self._sample(f"{size}-{i}", row, length) for i, row in draw(rows, n, seed))

    def _sample(self, name: str, row: BABILongRow, length: int) -> Sample:
        question = row.question.strip()
        # A label in the question does not count in the answer.
        choices = tuple(c for c in LABELS[self.kind] if c.lower() not in question.lower())
        allowed = ", ".join(LABELS[self.kind])
        return Sample(
            id=name,
            task=self.name,
            context="Read the text. Facts are hidden in it, and the latest of them hold.\n\n"
            f"{row.input.strip()}",
            question=f"\n\nAnswer with one of: {allowed}.\nQuestion: {question}\nAnswer:",
            answers=(row.target,),
            max_new_tokens=MAX_NEW_TOKENS,
            length=length,
            choices=choices,
        )


def _size(length: int) -> str:
    """`4k` of 4,000 or 4,096, `1M` of a million or 1,048,576."""
    for thousand in (1000, 1024):
        thousands, rest = divmod(length, thousand)
        if not rest and thousands % thousand == 0 and thousands:
            return f"{thousands // thousand}M"
        if not rest:
            return f"{thousands}k"
    raise SettingsError(f"length is {length}, BABILong has 0, 1024, 2048, 4096, ...")


BABILONG_TASKS: Final = tuple(BABILongTask(f"qa{i}") for i in range(1, 21))

# SPDX-License-Identifier: Apache-2.0
"""A question about a long text, its answer, the place of the answer, and how to grade a reply."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headkv_vllm.errors import SamplesError, explain, shown

MAX_FILE_BYTES: Final = 2**30

Span = tuple[int, int]

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class ScoreSample:
    """One question about a context, with its answer.

    evidence: the statement that answers the question, as character spans `[start, end)` of
        `context`. They ascend and do not touch. Empty when the place is not known.
    """

    context: str
    question: str
    answer: str
    evidence: tuple[Span, ...]


class SampleLine(BaseModel):
    """A line of a samples file, see `read_samples`. Error messages quote the descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    context: str = Field(pattern=r"\S", description="a text")
    question: str = Field(pattern=r"\S", description="a text")
    answer: str = Field(pattern=r"\S", description="a text")
    evidence: str | Span | tuple[str | Span, ...] | None = Field(
        default=None,
        description="a text from the context, a span of characters [start, end], or a list of them",
    )

    def to_sample(self, *, needs_evidence: bool) -> ScoreSample:
        """The sample with its evidence as spans.

        Raises SamplesError; its message does not name the file and the line.
        """
        spans = [span for part in self._parts() for span in self._find(part)]
        if needs_evidence and not spans:
            raise SamplesError(
                f"the answer {shown(self.answer)} is not in the context, so evidence is needed"
            )
        return ScoreSample(self.context, self.question, self.answer, merge(spans))

    def _parts(self) -> tuple[str | Span | None, ...]:
        match self.evidence:
            case None | str() | (int(), int()):
                return (cast("str | Span | None", self.evidence),)
            case ():
                raise SamplesError("evidence is an empty list, leave the key out instead")
        return self.evidence

    def _find(self, part: str | Span | None) -> list[Span]:
        if part is None:
            return self._find_answer()
        if isinstance(part, str):
            return self._find_text(part)
        start, end = part
        if not 0 <= start < end <= len(self.context):
            raise SamplesError(
                f"evidence is [{start}, {end}], allowed are 0 <= start < end <= "
                f"{len(self.context)}, the context's characters"
            )
        return [part]

    def _find_answer(self) -> list[Span]:
        """All places of the answer as whole words, or all places if there is none."""
        places = list(occurrences(self.context, self.answer))
        whole_words = re.compile(rf"(?<!\w){re.escape(self.answer)}(?!\w)")
        return [span for span in places if whole_words.match(self.context, span[0])] or places

    def _find_text(self, text: str) -> list[Span]:
        places = list(occurrences(self.context, text)) if text.strip() else []
        if len(places) != 1:
            raise SamplesError(
                f"the evidence {shown(text)} is {len(places)} times in the context, expected once"
            )
        return places


def read_samples(path: Path, *, needs_evidence: bool = True) -> tuple[ScoreSample, ...]:
    """The samples in a file of JSON lines: `{context, question, answer, evidence (optional)}`.

    evidence is a text that the context contains once, a span of characters `[start, end)`, or a
    list of these. Without this key the evidence is every place of the answer in the context, as
    whole words if there is such a place. If there is no place at all, the sample has no evidence,
    which is an error if `needs_evidence`. Blank lines are skipped.

    Raises SamplesError, one line with the file and the line number, when the file cannot be read,
    is empty or larger than MAX_FILE_BYTES, or when a line is not as described.
    """
    samples = tuple(
        _parse(path, number, line, needs_evidence)
        for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1)
        if line.strip()
    )
    if not samples:
        raise SamplesError(f"samples file {str(path)!r} is empty, expected a JSON object per line")
    return samples


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same characters as ascending spans that do not overlap or touch."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            start, end = merged[-1][0], max(end, merged[-1][1])
            merged.pop()
        merged.append((start, end))
    return tuple(merged)


def occurrences(text: str, part: str) -> Iterator[Span]:
    """Every span of `text` that equals `part`, also overlapping ones. `part` is not empty."""
    start = text.find(part)
    while start >= 0:
        yield start, start + len(part)
        start = text.find(part, start + 1)


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise SamplesError(f"samples file {str(path)!r} is not a regular file")
        if size > MAX_FILE_BYTES:
            raise SamplesError(
                f"samples file {str(path)!r} has {size} bytes, allowed are {MAX_FILE_BYTES}"
            )
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise SamplesError(f"samples file {str(path)!r} cannot be read: {error.strerror}") from None


def _parse(path: Path, number: int, line: bytes, needs_evidence: bool) -> ScoreSample:
    try:
        read = SampleLine.model_validate_json(line.decode())
        return read.to_sample(needs_evidence=needs_evidence)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except ValidationError as error:
        allowed = {name: str(field.description) for name, field in SampleLine.model_fields.items()}
        reason = explain(error, SampleLine, "it", allowed)
    except SamplesError as error:
        reason = str(error)
    raise SamplesError(f"samples file {str(path)!r}, line {number}: {reason}")


def recall(answer: str, generated: str) -> float:
    """The share of the answer's words that `generated` contains, 0 to 1, as in arXiv 2404.15574.

    A repeated word counts as often as it stands in both. An answer without words scores 1 when
    `generated` has no words, and 0 otherwise.
    """
    expected, said = english_words(answer), english_words(generated)
    if not expected:
        return float(not said)
    return (Counter(expected) & Counter(said)).total() / len(expected)


def english_words(text: str) -> list[str]:
    """The words of `text` in lower case, without ASCII punctuation and without articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()

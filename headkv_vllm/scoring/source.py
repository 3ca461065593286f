# SPDX-License-Identifier: Apache-2.0
"""Where a run's samples come from: the built-in needles, or the user's own file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from headkv_vllm.scoring.built_in import built_in_samples
from headkv_vllm.scoring.haystack import GeneratedHaystack, Haystack, TextHaystack
from headkv_vllm.scoring.methods import Method
from headkv_vllm.scoring.samples import Sample, read_samples

CountTokens = Callable[[str], int]


class Source(Protocol):
    """Samples, and what the score file says about them."""

    @property
    def seed(self) -> int | None:
        """What the samples were drawn with, if they were drawn."""
        ...

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of prompt and answer that were asked for; empty where the samples decide."""
        ...

    @property
    def description(self) -> str:
        """One line for people, the same for the same samples."""
        ...

    def samples(
        self, method: Method, count_tokens: CountTokens, reserved: int
    ) -> tuple[Sample, ...]:
        """All samples, in order; `reserved` as for `built_in_samples`. Raises SamplesError."""
        ...


@dataclass(frozen=True)
class BuiltInSource:
    """`per_length` generated needles for `method` in each of `lengths` tokens of `haystack`."""

    per_length: int
    lengths: tuple[int, ...]
    seed: int
    haystack: Haystack
    description: str

    @classmethod
    def hidden_in(
        cls, haystack: Path | None, per_length: int, lengths: tuple[int, ...], seed: int
    ) -> Self:
        """In the text at `haystack`, in generated prose for None. Raises SamplesError."""
        if haystack is None:
            text: Haystack = GeneratedHaystack()
            return cls(per_length, lengths, seed, text, "built-in needles in generated prose")
        text = TextHaystack(haystack)
        return cls(per_length, lengths, seed, text, f"built-in needles in {haystack.name}")

    def samples(
        self, method: Method, count_tokens: CountTokens, reserved: int
    ) -> tuple[Sample, ...]:
        drawn = (self.lengths, self.per_length, self.seed, self.haystack)
        return tuple(built_in_samples(method, count_tokens, *drawn, reserved))


@dataclass(frozen=True)
class FileSource:
    """The samples of a JSON lines file, for every method."""

    read: tuple[Sample, ...]
    description: str
    seed: None = None
    lengths: tuple[int, ...] = ()

    @classmethod
    def at(cls, path: Path, *, needs_evidence: bool) -> Self:
        """Those of the file at `path`, see `read_samples`. Raises SamplesError."""
        read = read_samples(path, needs_evidence=needs_evidence)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(read, f"{path.name}, sha256 {digest}")

    def samples(
        self, method: Method, count_tokens: CountTokens, reserved: int
    ) -> tuple[Sample, ...]:
        return self.read

# SPDX-License-Identifier: Apache-2.0
"""The options of `headkv score`, checked before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path

from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.scoring.attention_scores import METHODS, STEP_SCORES, Method
from headkv_vllm.scoring.measuring import ANSWERS, Answers
from headkv_vllm.scoring.prompts import DEFAULT_TEMPLATE, Template
from headkv_vllm.scoring.sources import BuiltInSource, FileSource, Source

DEFAULT_LENGTHS = "512,1024,2048"
DEFAULT_SEED = 0
MAX_PER_LENGTH = 10_000
MAX_INTEGER = 2**31 - 1


@dataclass(frozen=True)
class Hardware:
    """Where and how the model runs; see `load_checkpoint`. threads: CPU threads, None for all."""

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """One run of `headkv score`: which scores of which model go into which file."""

    model: str
    revision: str | None
    name: str
    method: Method
    answers: Answers
    source: Source
    template: Template
    out: Path


def parse_method(text: str) -> Method:
    """The scoring method of this name. Raises SettingsError."""
    for method in METHODS:
        if text == method:
            return method
    raise SettingsError(f"--method is {shown(text)}, allowed are {', '.join(METHODS)}")


def parse_answers(text: str) -> Answers:
    """The kind of answers that are scored. Raises SettingsError."""
    for answers in ANSWERS:
        if text == answers:
            return answers
    raise SettingsError(f"--answers is {shown(text)}, allowed are {', '.join(ANSWERS)}")


def parse_source(
    method: Method, samples: str, lengths: str | None, seed: int | None, haystack: Path | None
) -> Source:
    """`samples` is a number of built-in samples per length, or a file.

    A file excludes the other options. Raises SettingsError, and SamplesError when a file cannot be
    used.
    """
    if not samples.lstrip("+-").isdigit():
        _refuse_beside_file({"--lengths": lengths, "--seed": seed, "--haystack": haystack})
        return FileSource.from_file(Path(samples), needs_evidence=method in STEP_SCORES)
    parts = (DEFAULT_LENGTHS if lengths is None else lengths).split(",")
    return BuiltInSource.from_haystack(
        haystack,
        per_length=_integer("--samples", samples, minimum=1, maximum=MAX_PER_LENGTH),
        lengths=tuple(_integer("--lengths", part.strip(), minimum=1) for part in parts),
        seed=_integer("--seed", str(DEFAULT_SEED if seed is None else seed), minimum=0),
    )


def parse_template(text: str | None, *, chat: bool | None) -> Template:
    """The template of the prompt; None gives the default. Raises SamplesError."""
    return Template(DEFAULT_TEMPLATE if text is None else text, chat)


def _refuse_beside_file(options: dict[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise SettingsError(f"{option} is for built-in samples, but --samples is a file")


def _integer(option: str, text: str, *, minimum: int, maximum: int = MAX_INTEGER) -> int:
    # The length is checked first, because Python refuses to convert thousands of digits.
    if not text.isdecimal() or len(text) > len(str(maximum)) or not minimum <= int(text) <= maximum:
        raise SettingsError(
            f"{option} is {shown(text)}, allowed are integers from {minimum} to {maximum}"
        )
    return int(text)

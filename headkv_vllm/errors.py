# SPDX-License-Identifier: Apache-2.0
"""What this package raises when it is given something it cannot use."""

from collections.abc import Iterable


class HeadKVError(Exception):
    """Base of all errors of this package. Its text is one line, fit to be shown to a user.

    Not a ValueError: vLLM's config classes are validated by pydantic, which would bury a
    ValueError in a report of several lines.
    """


class SettingsError(HeadKVError):
    """A setting has a value that is not allowed."""


class RequestError(HeadKVError):
    """A request asks for what it may not have. parameter, value: the argument at fault."""

    def __init__(self, message: str, parameter: str, value: object) -> None:
        super().__init__(message)
        self.parameter, self.value = parameter, value


class ScoreFileError(HeadKVError):
    """A score file, or the checkpoint it is to be matched with, cannot be used."""


class SamplesError(HeadKVError):
    """A sample, or the text that it is to be hidden in, cannot be used."""


class ModelError(HeadKVError):
    """A checkpoint cannot be loaded, or has no attention that can be measured."""


class ScoringError(HeadKVError):
    """Head scores could not be measured."""


class UnsupportedError(HeadKVError):
    """The model, the platform or a vLLM option does not go together with this package."""


def shown(value: object, limit: int = 80) -> str:
    """`repr(value)` on one line of at most `limit` characters, for use in an error message."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # integers of thousands of digits, or lists as deep
        text = f"<{type(value).__name__}, too long to show>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def one_of(values: Iterable[str]) -> str:
    """Two or more allowed values, for people: "'a', 'b' or 'c'"."""
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}"

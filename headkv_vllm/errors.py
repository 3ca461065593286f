# SPDX-License-Identifier: Apache-2.0
"""The errors that this package raises for bad input."""

from collections.abc import Iterable


class HeadKVError(Exception):
    """Base class of all errors of this package. The message is one line for the user.

    It is not a ValueError, because pydantic validates vLLM's config classes and turns a
    ValueError into a report of several lines.
    """


class SettingsError(HeadKVError):
    """A setting has a value that is not allowed."""


class RequestError(HeadKVError):
    """A request has an argument that is not allowed.

    parameter, value: the name and the value of that argument.
    """

    def __init__(self, message: str, parameter: str, value: object) -> None:
        super().__init__(message)
        self.parameter, self.value = parameter, value


class ScoreFileError(HeadKVError):
    """A score file cannot be used, or the checkpoint that it must match cannot be used."""


class SamplesError(HeadKVError):
    """A sample cannot be used, or the text around it cannot be used."""


class ModelError(HeadKVError):
    """A checkpoint cannot be loaded, or its attention cannot be measured."""


class ScoringError(HeadKVError):
    """Head scores could not be measured."""


class UnsupportedError(HeadKVError):
    """This package does not support the model, the platform or an option of vLLM."""


def shown(value: object, limit: int = 80) -> str:
    """`repr(value)` on one line of at most `limit` characters, for an error message."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer with thousands of digits, or a deep list
        text = f"<{type(value).__name__}, too long to show>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def one_of(values: Iterable[str]) -> str:
    """Two or more allowed values as text for an error message: "'a', 'b' or 'c'"."""
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}"

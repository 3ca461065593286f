# SPDX-License-Identifier: Apache-2.0
"""The errors that this package raises for bad input, and the words of their messages."""

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ValidationError


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


class EvaluationError(HeadKVError):
    """An evaluation cannot go on, or its results cannot be used."""


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


def explain(
    error: ValidationError,
    model: type[BaseModel],
    subject: str = "the document",
    allowed: Mapping[str, str] | None = None,
    first_key: str = "",
) -> str:
    """The first problem in `error` as one clause: which key, its value, and what is expected.

    model: what the input was validated as. subject: what the input is called.
    allowed: for a key of `model`, the text that follows "expected", in place of pydantic's words.
    first_key: a key whose problem is reported before all others.
    """
    first = min(
        error.errors(),
        # A misspelt key explains why another one is missing.
        key=lambda found: (found["loc"] != (first_key,), found["type"] != "extra_forbidden"),
    )
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    key = path.removeprefix(".")
    match first["type"]:
        case "value_error":
            return str(first["ctx"]["error"])
        case "json_invalid":
            return f"{subject} is not valid JSON: {first['ctx']['error']}"
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            is_top_level = len(first["loc"]) == 1
            keys = f", allowed are {', '.join(model.model_fields)}" if is_top_level else ""
            return f"{shown(key)} is not a key{keys}"
    value = shown(first["input"])
    if not key:
        return f"{subject} is {value}, expected a JSON object"
    top_level = str(first["loc"][0])
    if allowed and top_level in allowed:
        return f"{top_level} is {value}, expected {allowed[top_level]}"
    return f"{key} is {value}, {first['msg'].replace('Input should be ', 'expected ')}"

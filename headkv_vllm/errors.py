# SPDX-License-Identifier: Apache-2.0
"""What this package raises when it is given something it cannot use."""


class HeadKVError(Exception):
    """Base of all errors of this package. Its text is one line, fit to be shown to a user.

    Not a ValueError: vLLM's config classes are validated by pydantic, which would bury a
    ValueError in a report of several lines.
    """


class SettingsError(HeadKVError):
    """A setting has a value that is not allowed."""


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
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."

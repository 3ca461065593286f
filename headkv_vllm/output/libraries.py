# SPDX-License-Identifier: Apache-2.0
"""Keeps the output and the errors of transformers and the hub's client readable."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Hides logs, warnings and, unless `bars`, progress bars.

    The code in the block must find important problems itself and raise them.
    """
    level, had_bars = logging.root.manager.disable, transformers.logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        if not bars:
            transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.disable(level)
            if had_bars:
                transformers.logging.enable_progress_bar()


def one_line(error: Exception, limit: int = 200) -> str:
    """The kind and text of `error` on one line of at most `limit` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else f"{text[: limit - 2]}.."

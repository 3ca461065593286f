# SPDX-License-Identifier: Apache-2.0
"""Where the bundled needle model lies."""

from pathlib import Path


def checkpoint_path() -> Path:
    """The folder of the bundled model, in Hugging Face format; vLLM can serve it as it is."""
    return Path(__file__).parent / "checkpoint"

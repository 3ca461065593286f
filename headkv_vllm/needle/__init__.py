# SPDX-License-Identifier: Apache-2.0
"""The needle model: a tiny bundled Llama that retrieves keys, with its tasks and its scores."""

from pathlib import Path


def checkpoint_path() -> Path:
    """The folder of the bundled model in Hugging Face format, which vLLM can serve."""
    return Path(__file__).parent / "checkpoint"

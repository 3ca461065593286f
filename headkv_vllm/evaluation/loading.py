# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's folder and the tokenizer, found before any server starts."""

from pathlib import Path

from headkv_vllm.errors import ModelError, shown
from headkv_vllm.evaluation.samples import Tokenizer

TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


def checkpoint_folder(model: str) -> Path:
    """Where the files of `model` are; of a hub's model those that the cache lacks are downloaded.

    Raises ModelError.
    """
    from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder

    return find_checkpoint_folder(model)


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of `model`, a folder or a hub's name. Raises ModelError where it has none."""
    from transformers import AutoTokenizer

    from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder
    from headkv_vllm.output.libraries import one_line, quiet

    folder = find_checkpoint_folder(model, files=TOKENIZER_FILES)
    try:
        with quiet():
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"{shown(model)} has no usable tokenizer: {one_line(error)}") from None
    return tokenizer

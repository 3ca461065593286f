# SPDX-License-Identifier: Apache-2.0
"""The importers, by the names that `headkv scores import --format` allows."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from headkv_vllm.errors import ScoreFileError, shown
from headkv_vllm.scores.identity import ModelIdentity
from headkv_vllm.scores.importers.duo_attention import read_duo_attention
from headkv_vllm.scores.importers.imported import Imported
from headkv_vllm.scores.importers.kvzip import PICKLE_SUFFIXES, read_kvzip
from headkv_vllm.scores.importers.reference import read_reference
from headkv_vllm.scores.importers.source import not_imported

Importer = Callable[[Path, ModelIdentity], Imported]

IMPORTERS: dict[str, Importer] = {
    "reference": read_reference,
    "duo-attention": read_duo_attention,
    "kvzip": read_kvzip,
}
SUFFIXES = {
    ".json": "reference",
    ".tsv": "duo-attention",
    **dict.fromkeys((".safetensors", ".npy", *PICKLE_SUFFIXES), "kvzip"),
}


def guess_format(path: Path) -> str:
    """The format of the file or folder at `path`, by its suffix. Raises ScoreFileError."""
    if path.is_dir():
        return "duo-attention"
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise not_imported(
            path,
            f"its suffix {shown(path.suffix)} tells no format, expected .json, .tsv, .safetensors "
            f"or .npy, or --format with one of {', '.join(IMPORTERS)}",
        )
    return found


def find_importer(format_name: str, tensor: str | None = None) -> Importer:
    """The importer of that name; `tensor` names one of the tensors of a kvzip file.

    Raises ScoreFileError when there is none, or when its format holds no tensors.
    """
    if format_name not in IMPORTERS:
        raise ScoreFileError(
            f"--format {shown(format_name)} is unknown: it must be one of {', '.join(IMPORTERS)}"
        )
    if tensor is None:
        return IMPORTERS[format_name]
    if format_name != "kvzip":
        raise ScoreFileError(f"--tensor {shown(tensor)} goes with --format kvzip only")
    return partial(read_kvzip, tensor=tensor)

# SPDX-License-Identifier: Apache-2.0
"""Reads files of other programs, as one score per query head. The formats are:

- `reference`: {"<layer>-<query head>": [scores]}, of the retrieval-head (arXiv 2404.15574) and the
  HeadKV code (arXiv 2410.19258).
- `duo-attention`: the gates of DuoAttention (arXiv 2410.10819), full_attention_heads.tsv with one
  line per layer.
- `kvzip`: one tensor of KVzip (arXiv 2505.23416).
"""

import io
import json
import math
import re
import warnings
from collections.abc import Callable
from functools import partial
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from headkv_vllm.arrays import AnyArray, FloatArray
from headkv_vllm.errors import ScoreFileError, shown
from headkv_vllm.head_scores.identity import ModelIdentity
from headkv_vllm.head_scores.imported_file import (
    ImportedScores,
    SourceFile,
    not_imported,
    read_source,
    spread_to_query_heads,
)

Head = tuple[int, int]
_NUMBER = "(0|[1-9][0-9]{0,5})"
_KEY = re.compile(f"{_NUMBER}-{_NUMBER}")


def read_reference(path: Path, identity: ModelIdentity) -> ImportedScores:
    """Scores of the query heads: the mean over each head's samples.

    Keys may have any order. Heads may have different numbers of samples.
    Raises ScoreFileError when the file has another format, or is not for the model `identity`.
    """
    source = read_source(path)
    samples = _parse(source)
    _check_heads(source, samples.keys(), identity)
    scores: FloatArray = np.zeros((identity.num_layers, identity.num_heads))
    for head, numbers in samples.items():
        scores[head] = _mean(source, head, numbers)
    lengths = {len(numbers) for numbers in samples.values()}
    return ImportedScores(scores, source, num_samples=lengths.pop() if len(lengths) == 1 else None)


def _parse(source: SourceFile) -> dict[Head, list[Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise source.unusable(f"the key {shown(twice)} stands more than once")
        return document

    try:
        document = json.loads(source.text(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise source.unusable(f"it is not valid JSON: {shown(str(error))}") from None
    if not isinstance(document, dict):
        raise source.unusable(
            f"it contains {shown(document)}, expected an object with keys '<layer>-<query head>'"
        )
    return {_head(source, key): _numbers(source, key, value) for key, value in document.items()}


def _head(source: SourceFile, key: str) -> Head:
    match = _KEY.fullmatch(key)
    if match is None:
        raise source.unusable(
            f"the key {shown(key)} is not a head, expected '<layer>-<query head>' as in '3-17'"
        )
    return int(match[1]), int(match[2])


def _numbers(source: SourceFile, key: str, value: Any) -> list[Any]:
    if isinstance(value, list) and value:
        return value
    raise source.unusable(f"head {key} has {shown(value)}, expected a list of scores, not empty")


def _mean(source: SourceFile, head: Head, numbers: list[Any]) -> float:
    for number in numbers:
        if not _is_score(number):
            raise source.unusable(
                f"head {head[0]}-{head[1]} has the score {shown(number)}, "
                "expected finite numbers of at least 0"
            )
    # Each score is divided first, so that the sum of finite scores cannot overflow.
    return math.fsum(number / len(numbers) for number in numbers)


def _is_score(number: Any) -> bool:
    try:
        return type(number) in (int, float) and number >= 0 and math.isfinite(number)
    except OverflowError:  # an integer beyond float
        return False


def _check_heads(source: SourceFile, found: Any, identity: ModelIdentity) -> None:
    shape = identity.num_layers, identity.num_heads
    expected = {(layer, head) for layer in range(shape[0]) for head in range(shape[1])}
    if found == expected:
        return
    if not found:
        raise source.unusable(f"it has no heads, expected {_sizes(*shape)}")
    seen = 1 + max(layer for layer, _ in found), 1 + max(head for _, head in found)
    if found - expected or len(found) == seen[0] * seen[1]:
        raise source.unusable(
            f"it seems to be for another model, with {_sizes(*seen)}; this model has "
            f"{_sizes(*shape)}"
        )
    missing = sorted(expected - found)
    raise source.unusable(
        f"{len(missing)} heads are missing, the first is {missing[0][0]}-{missing[0][1]}; "
        f"expected all of {_sizes(*shape)}"
    )


def _sizes(num_layers: int, num_heads: int) -> str:
    return f"{num_layers} layers x {num_heads} query heads"


FILE_NAME = "full_attention_heads.tsv"


def read_duo_attention(path: Path, identity: ModelIdentity) -> ImportedScores:
    """Scores of the query heads: the gate of their KV head, clipped to 0..1 as in DuoAttention.

    `path` is the file or its folder. Raises ScoreFileError when the file is not a table of
    num_layers lines with num_kv_heads numbers.
    """
    source = read_source(path / FILE_NAME if path.is_dir() else path)
    lines = source.text().rstrip().splitlines()
    if len(lines) != identity.num_layers:
        raise source.unusable(f"it has {len(lines)} lines, expected {identity.num_layers} layers")
    rows = [_gates(source, number, line, identity) for number, line in enumerate(lines, 1)]
    return ImportedScores(spread_to_query_heads(np.clip(rows, 0.0, 1.0), identity), source)


def _gates(source: SourceFile, number: int, line: str, identity: ModelIdentity) -> list[float]:
    cells = line.split("\t")
    if len(cells) != identity.num_kv_heads:
        raise source.unusable(
            f"line {number} has {len(cells)} values, expected {identity.num_kv_heads} KV heads, "
            "separated by tabs"
        )
    return [_gate(source, number, cell) for cell in cells]


def _gate(source: SourceFile, number: int, cell: str) -> float:
    try:
        gate = float(cell)
    except ValueError:
        gate = np.nan
    if not np.isfinite(gate):
        raise source.unusable(f"line {number} has {shown(cell)}, expected finite numbers")
    return gate


PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl")
_NPY_MAGIC = b"\x93NUMPY"
_NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_kvzip(path: Path, identity: ModelIdentity, tensor: str | None = None) -> ImportedScores:
    """Scores of the query heads, from a tensor [num_layers, num_kv_heads or num_heads].

    Dimensions of size one, such as KVzip's batch, are dropped if the result has one of these
    shapes. `path` is a .npy file, or a .safetensors file with one tensor or with a tensor named
    `tensor`. Raises ScoreFileError for other files, and for pickles.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise not_imported(
            path,
            "it is a torch pickle, which can run any code when it is loaded: convert it to a .npy "
            "file with numpy.save('scores.npy', torch.load(FILE, weights_only=True, "
            "map_location='cpu').float().numpy())",
        )
    source = read_source(path)
    is_npy = source.data.startswith(_NPY_MAGIC)
    values = _read_npy(source, tensor) if is_npy else _read_safetensors(source, tensor)
    return ImportedScores(
        spread_to_query_heads(_per_head(source, values, identity), identity), source
    )


def _read_npy(source: SourceFile, tensor: str | None) -> FloatArray:
    if tensor is not None:
        raise source.unusable(f"it is a .npy file, which has no tensor named {shown(tensor)}")
    stream = io.BytesIO(source.data)
    try:
        with warnings.catch_warnings(action="ignore"):
            array = np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
    # NumPy parses the header as a Python literal, so a damaged header raises many kinds of errors.
    except Exception as error:
        raise source.unusable(f"it is not a readable .npy file: {shown(str(error))}") from None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise source.unusable(f"it has {shown(str(array.dtype))}, expected float16, 32 or 64")
    return _as_float64(array)


def _read_safetensors(source: SourceFile, name: str | None) -> FloatArray:
    try:
        tensors = dict(deserialize(source.data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise source.unusable(f"it is neither .npy nor safetensors: {shown(str(error))}") from None
    tensor = tensors[_pick(source, list(tensors), name)]
    if tensor["dtype"] not in _NUMPY_DTYPES:
        raise source.unusable(
            f"it has {tensor['dtype']}, expected one of {', '.join(_NUMPY_DTYPES)}"
        )
    return _decode(tensor).reshape(tensor["shape"])


def _pick(source: SourceFile, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name is not None and name in names:
        return name
    found = f"{len(names)} tensors" if name is None else f"no tensor {shown(name)}"
    raise source.unusable(f"it has {found}, expected one: --tensor of {shown(sorted(names))}")


def _decode(tensor: dict[str, Any]) -> FloatArray:
    raw: AnyArray = np.frombuffer(tensor["data"], _NUMPY_DTYPES[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        # NumPy has no bfloat16. A bfloat16 number is the upper half of a float32.
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return _as_float64(raw)


def _as_float64(values: AnyArray) -> FloatArray:
    with np.errstate(invalid="ignore"):  # NaN is refused later
        return values.astype(np.float64)


def _per_head(source: SourceFile, values: FloatArray, identity: ModelIdentity) -> FloatArray:
    for num_heads in (identity.num_kv_heads, identity.num_heads):
        shape = (identity.num_layers, num_heads)
        if values.size == prod(shape) and shape in combinations(values.shape, 2):
            return values.reshape(shape)
    raise source.unusable(
        f"the tensor's shape is {shown(list(values.shape))}, expected [{identity.num_layers}, "
        f"{identity.num_kv_heads}] (KV heads) or [{identity.num_layers}, {identity.num_heads}] "
        "(query heads)"
    )


Importer = Callable[[Path, ModelIdentity], ImportedScores]

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
            f"its suffix {shown(path.suffix)} has no known format, expected .json, .tsv, "
            f".safetensors or .npy, or --format with one of {', '.join(IMPORTERS)}",
        )
    return found


def find_importer(format_name: str, tensor: str | None = None) -> Importer:
    """The importer of the format `format_name`. tensor: the name of a tensor in a kvzip file.

    Raises ScoreFileError when the format is unknown, or when its files have no tensors.
    """
    if format_name not in IMPORTERS:
        raise ScoreFileError(
            f"--format {shown(format_name)} is unknown: it must be one of {', '.join(IMPORTERS)}"
        )
    if tensor is None:
        return IMPORTERS[format_name]
    if format_name != "kvzip":
        raise ScoreFileError(f"--tensor {shown(tensor)} is for --format kvzip only")
    return partial(read_kvzip, tensor=tensor)

# SPDX-License-Identifier: Apache-2.0
"""Head scores in one tensor, as KVzip makes them (arXiv 2505.23416)."""

import io
import warnings
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from headkv_vllm.errors import shown
from headkv_vllm.scores.identity import ModelIdentity
from headkv_vllm.scores.importers.imported import FloatArray, Imported, spread_to_query_heads
from headkv_vllm.scores.importers.source import Source, not_imported, read_source

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl")
_NPY_MAGIC = b"\x93NUMPY"
_NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_kvzip(path: Path, identity: ModelIdentity, tensor: str | None = None) -> Imported:
    """Scores of the query heads, from a tensor [num_layers, num_kv_heads or num_heads].

    Dimensions of size one, such as KVzip's batch, are dropped where that gives one of these
    shapes. `path` is a .npy file or a .safetensors file, there with one tensor or with one of
    the name `tensor`. Raises ScoreFileError for anything else, and for a pickle.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise not_imported(
            path,
            "it is a torch pickle, which may run any code when it is loaded: make a .npy file of "
            "it with numpy.save('scores.npy', torch.load(FILE, weights_only=True, "
            "map_location='cpu').float().numpy())",
        )
    source = read_source(path)
    is_npy = source.data.startswith(_NPY_MAGIC)
    values = _read_npy(source, tensor) if is_npy else _read_safetensors(source, tensor)
    return Imported(spread_to_query_heads(_per_head(source, values, identity), identity), source)


def _read_npy(source: Source, tensor: str | None) -> FloatArray:
    if tensor is not None:
        raise source.unusable(f"it is a .npy file, which has no tensor named {shown(tensor)}")
    stream = io.BytesIO(source.data)
    try:
        with warnings.catch_warnings(action="ignore"):
            array = np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
    # NumPy reads the header as a Python literal: a damaged one raises whatever the parser does.
    except Exception as error:
        raise source.unusable(f"it is no readable .npy file: {shown(str(error))}") from None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise source.unusable(f"it holds {shown(str(array.dtype))}, expected float16, 32 or 64")
    return _as_float64(array)


def _read_safetensors(source: Source, name: str | None) -> FloatArray:
    try:
        tensors = dict(deserialize(source.data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise source.unusable(f"it is neither .npy nor safetensors: {shown(str(error))}") from None
    tensor = tensors[_pick(source, list(tensors), name)]
    if tensor["dtype"] not in _NUMPY_DTYPES:
        raise source.unusable(
            f"it holds {tensor['dtype']}, expected one of {', '.join(_NUMPY_DTYPES)}"
        )
    return _decode(tensor).reshape(tensor["shape"])


def _pick(source: Source, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name is not None and name in names:
        return name
    found = f"{len(names)} tensors" if name is None else f"no tensor {shown(name)}"
    raise source.unusable(f"it has {found}, expected one: --tensor of {shown(sorted(names))}")


def _decode(tensor: dict[str, Any]) -> FloatArray:
    raw: npt.NDArray[Any] = np.frombuffer(tensor["data"], _NUMPY_DTYPES[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        # NumPy has no bfloat16: it is the upper half of a float32.
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return _as_float64(raw)


def _as_float64(values: npt.NDArray[Any]) -> FloatArray:
    with np.errstate(invalid="ignore"):  # a signalling NaN, which is refused later
        return values.astype(np.float64)


def _per_head(source: Source, values: FloatArray, identity: ModelIdentity) -> FloatArray:
    for num_heads in (identity.num_kv_heads, identity.num_heads):
        wanted = (identity.num_layers, num_heads)
        if values.size == prod(wanted) and wanted in combinations(values.shape, 2):
            return values.reshape(wanted)
    raise source.unusable(
        f"the tensor's shape is {shown(list(values.shape))}, expected [{identity.num_layers}, "
        f"{identity.num_kv_heads}] (KV heads) or [{identity.num_layers}, {identity.num_heads}] "
        "(query heads)"
    )

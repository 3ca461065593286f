# SPDX-License-Identifier: Apache-2.0
"""A CUDA graph in plain: what a capture did to tensors, done again to the same tensors."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

HOST_READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)
_launch = GridExecutor.__call__


class RecordedGraph(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`, for tensors of the CPU and Triton's interpreter.

    As there, only what is done to tensors is done again. What Python computed meanwhile stays as
    it was, and so does a tensor that is no longer the one which the next step fills. Unlike there,
    work is done while it is captured, all its tensors live on, there are no streams, and of what
    the host reads only part is seen; see `tests/engine/test_no_host_reads.py` for the rest.
    """

    num_replays: ClassVar[int] = 0

    def __init__(self, keep_graph: bool = False) -> None:
        super().__init__()
        self.work: list[Callable[[], object]] = []
        self.is_launching = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Raises RuntimeError where the host reads a tensor, as a GPU does during a capture."""
        found = func(*args, **(kwargs or {}))
        if self.is_launching:
            return found
        if func in HOST_READS:
            raise RuntimeError(f"{func} during a capture")
        self.work.append(lambda: _overwrite(found, func(*args, **(kwargs or {}))))
        return found

    def launch(self, executor: GridExecutor, args: Any, kwargs: Any) -> None:
        """One kernel, whatever the interpreter does to run it."""
        self.is_launching = True
        try:
            _launch(executor, *args, **kwargs)
        finally:
            self.is_launching = False
        self.work.append(lambda: _launch(executor, *args, **kwargs))

    def replay(self) -> None:
        RecordedGraph.num_replays += 1
        for again in self.work:
            again()


class recording:
    """Stands in for `torch.cuda.graph`."""

    current: ClassVar[RecordedGraph | None] = None

    def __init__(self, graph: RecordedGraph, pool: object = None, stream: object = None) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        recording.current = self.graph
        self.graph.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.graph.__exit__(*error)
        recording.current = None


def launch_or_record(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
    """Stands in for `GridExecutor.__call__`, by which the interpreter runs a kernel."""
    if recording.current is None:
        _launch(executor, *args, **kwargs)
    else:
        recording.current.launch(executor, args, kwargs)


def install() -> None:
    """Let this process capture on the CPU what it would on a GPU."""
    torch.cuda.CUDAGraph = RecordedGraph  # type: ignore[misc, assignment]
    torch.cuda.graph = recording  # type: ignore[misc, assignment]
    GridExecutor.__call__ = launch_or_record


def _overwrite(old: object, new: object) -> None:
    """Where the capture made a tensor, others of its work hold it; a view needs nothing."""
    for before, after in zip(_tensors(old), _tensors(new), strict=True):
        if before.untyped_storage().data_ptr() != after.untyped_storage().data_ptr():
            before.copy_(after)


def _tensors(values: object) -> Iterable[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))

# SPDX-License-Identifier: Apache-2.0
"""What Triton would compile on a GPU, told from what its interpreter is asked to run."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction

Variant = tuple[str, ...]
OPTIONS = {"num_warps", "num_stages"}
"""Of launches, beside a kernel's own arguments: they follow from these."""
_run = InterpretedFunction.run


class CompiledKernels:
    """The variants of our kernels: a kernel is compiled once for each sort of its arguments."""

    def __init__(self) -> None:
        self.variants: set[Variant] = set()

    def install(self) -> None:
        """Watch every launch of this process from now on."""

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            if kernel.fn.__module__.startswith("headkv_vllm"):
                own = {name: kwargs[name] for name in kwargs.keys() - OPTIONS}
                bound = inspect.signature(kernel.fn).bind(*args, **own).arguments
                self.variants.add(variant(kernel, bound))
            return _run(kernel, *args, grid=grid, warmup=warmup, **kwargs)

        InterpretedFunction.run = run


def variant(kernel: Any, arguments: Mapping[str, Any]) -> Variant:
    """What Triton tells variants apart by: types, alignment, and integers that are one."""
    alike = kernel.kwargs.get("do_not_specialize") or ()
    constants = {
        name
        for name, parameter in inspect.signature(kernel.fn).parameters.items()
        if parameter.annotation is not inspect.Parameter.empty
    }
    sorts = (
        f"{name}={value}" if name in constants else f"{name}: {_sort(value, name not in alike)}"
        for name, value in arguments.items()
    )
    return (kernel.fn.__name__, *sorts)


def _sort(value: Any, is_specialised: bool) -> str:
    is_tensor = isinstance(value, torch.Tensor)
    kind = str(value.dtype) if is_tensor else type(value).__name__
    if not is_specialised or not isinstance(value, int | torch.Tensor):
        return kind
    if not is_tensor and value == 1:
        return f"{kind}, one"
    return kind if (value.data_ptr() if is_tensor else value) % 16 else f"{kind}, aligned"

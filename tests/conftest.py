# SPDX-License-Identifier: Apache-2.0
"""What all tests share."""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

import pytest
import torch
from hypothesis import settings

from headkv_vllm import kernels

# A first call that imports or compiles, on a machine that is busy, says nothing of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def interpret_triton() -> None:
    """Where there is no GPU, Triton's kernels run in its interpreter.

    It must be told so before it is first imported, by tests or by a library, and before kernels
    are; and only in this process, for engines in others are to be what users have.
    """
    if torch.cuda.is_available() or find_spec("triton") is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import_module("triton.experimental.gluon")  # the part that reads it again, later
        for module in iter_modules(kernels.__path__, f"{kernels.__name__}."):
            import_module(module.name)


interpret_triton()

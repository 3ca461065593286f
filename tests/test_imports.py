# SPDX-License-Identifier: Apache-2.0
"""All but the engine and the server work where vLLM cannot be imported."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import headkv_vllm

BUILDS_ON_VLLM = ("headkv_vllm.engine", "headkv_vllm.server")
IMPORT_WITHOUT_VLLM = """
import importlib, sys

class NoVllm:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vllm":
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, NoVllm())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def all_modules():
    prefix = f"{headkv_vllm.__name__}."
    found = pkgutil.walk_packages(headkv_vllm.__path__, prefix, onerror=lambda _: None)
    return [headkv_vllm.__name__, *(module.name for module in found)]


def builds_on_vllm(name):
    return any(name == package or name.startswith(f"{package}.") for package in BUILDS_ON_VLLM)


def import_without_vllm(names):
    command = [sys.executable, "-c", IMPORT_WITHOUT_VLLM, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_pure_modules_import_without_vllm():
    pure = [name for name in all_modules() if not builds_on_vllm(name)]
    assert {"headkv_vllm.cache.batch", "headkv_vllm.budgets.policies", "headkv_vllm.cli"} <= set(
        pure
    )
    done = import_without_vllm(pure)
    assert done.returncode == 0, done.stderr


def test_what_vllm_loads_first_does_not_import_it():
    """Entry points are imported while vLLM itself is being imported."""
    done = import_without_vllm(["headkv_vllm.engine.plugin"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["headkv_vllm.engine.kv_cache", "headkv_vllm.engine.platforms.platform"]
)
def test_a_module_that_needs_vllm_is_noticed(name):
    done = import_without_vllm([name])
    assert done.returncode == 1
    assert "is not to be imported here" in done.stderr


def test_no_module_is_overlooked():
    """Each file of the package is found by walking it, so that none escapes these tests."""
    folder = Path(headkv_vllm.__file__).parent
    paths = [path.relative_to(folder.parent).with_suffix("") for path in folder.rglob("*.py")]
    assert {".".join(path.parts).removesuffix(".__init__") for path in paths} == set(all_modules())

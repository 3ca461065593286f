# SPDX-License-Identifier: Apache-2.0
"""The vLLM that is installed has every name that we use, and our list of them is complete."""

import ast
import zipfile
from pathlib import Path

import pytest

import headkv_vllm
from headkv_vllm.engine.vllm_names import VLLM_NAMES, Used
from headkv_vllm.engine.vllm_source import VllmSource, installed_root, main

PACKAGE = Path(headkv_vllm.__file__).parent

SOURCE = {
    "__init__.py": "from .version import __version__\n",
    "version.py": "__version__ = '9.9'\n",
    "base.py": "class Base:\n    kind: str\n    def run(self, a, *, b=0): self.result = a\n",
    "tools/__init__.py": "from .saw import *\nfrom vllm.base import Base as Root\n",
    "tools/saw.py": "try:\n    import fast\nexcept ImportError:\n    def cut(x, **more): ...\n",
    "child.py": (
        "from vllm.base import Base\nclass Child(Base):\n    @property\n    def size(self): ...\n"
    ),
}


@pytest.fixture
def root(tmp_path):
    for name, text in SOURCE.items():
        path = tmp_path / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_installed_version_has_every_name():
    problems = VllmSource(installed_root()).problems(VLLM_NAMES)
    assert not problems, "vLLM has changed:\n" + "\n".join(problems)


def imported_from_vllm():
    """(file, module, name) of each import of vLLM in the plugin."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from ((path, node.module, alias.name) for alias in node.names)
            if isinstance(node, ast.Import):
                yield from (
                    (path, alias.name, "") for alias in node.names if alias.name.startswith("vllm.")
                )


def test_every_import_of_ours_is_listed():
    modules = {used.module for used in VLLM_NAMES}
    listed = {(used.module, used.name.split(".")[0]) for used in VLLM_NAMES}
    imports = list(imported_from_vllm())
    assert len(imports) > 50
    for path, module, name in imports:
        is_module = f"{module}.{name}" in modules
        assert is_module or (module, name) in listed, f"{path}: {module}.{name} is not listed"


def test_each_name_says_what_it_is_for():
    names = [(used.module, used.name) for used in VLLM_NAMES]
    assert len(names) == len(set(names))
    assert all(used.reason for used in VLLM_NAMES)


@pytest.mark.parametrize(
    "used",
    [
        Used("vllm", "__version__", "x"),
        Used("vllm.base", "Base", "x", ("kind", "run", "result")),
        Used("vllm.base", "Base.run", "x", parameters=("a", "b")),
        Used("vllm.child", "Child", "x", ("size", "kind", "result")),
        Used("vllm.child", "Child.run", "x", parameters=("self", "a")),
        Used("vllm.tools", "Root", "x", ("run",)),
        Used("vllm.tools", "cut", "x", parameters=("anything",)),
        Used("vllm.tools", "saw", "x"),
    ],
)
def test_what_is_there_is_found(root, used):
    assert VllmSource(root).problems([used]) == []


@pytest.mark.parametrize(
    ("used", "problem"),
    [
        (Used("vllm.gone", "run", "why"), "vllm.gone.run is missing (used for: why)"),
        (Used("vllm.base", "Gone", "why"), "vllm.base.Gone is missing (used for: why)"),
        (Used("vllm.base", "Base.gone", "why"), "vllm.base.Base.gone is missing (used for: why)"),
        (
            Used("vllm.child", "Child", "why", ("size", "gone")),
            "vllm.child.Child.gone is missing (used for: why)",
        ),
        (
            Used("vllm.child", "Child.run", "why", parameters=("a", "c")),
            "vllm.child.Child.run has no parameter 'c' (used for: why)",
        ),
    ],
)
def test_what_is_missing_is_named(root, used, problem):
    assert VllmSource(root).problems([used]) == [problem]


def test_a_wheel_is_read_without_being_installed(root, tmp_path, capsys):
    wheel = tmp_path / "vllm-9.9.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in (root / "vllm").rglob("*.py"):
            file.write(path, path.relative_to(root))
    assert main([str(wheel)]) == 1
    printed = capsys.readouterr()
    assert "vllm.config.VllmConfig is missing" in printed.out
    assert f"{wheel}: {len(VLLM_NAMES)} names looked up" in printed.err


@pytest.mark.parametrize("name", ["nowhere", "empty", "no.whl"])
def test_what_is_no_vllm_is_refused(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.whl").write_text("not a wheel")
    assert main([str(tmp_path / name)]) == 2
    assert "vllm_source: " in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""Looks up the names that we use in a vLLM version's source, which need not be installed.

`python -m headkv_vllm.engine.vllm_source [FOLDER | WHEEL]`: the folder that contains `vllm`, or a
wheel of it; the installed version by default. Prints what is missing and exits with 1 if anything
is. Reading source takes a second, starts nothing and needs none of vLLM's dependencies.
"""

import ast
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from headkv_vllm.engine.vllm_names import VLLM_NAMES, Used

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Found(NamedTuple):
    """A definition, and the module that it stands in."""

    module: str
    node: ast.AST


class VllmSource:
    """The Python files of one version."""

    def __init__(self, root: Path) -> None:
        """root: the folder that contains `vllm`."""
        self._root = root
        self._modules: dict[str, ast.Module | None] = {}

    def problems(self, names: Iterable[Used]) -> list[str]:
        """One line for each of `names`, and of their members and parameters, that is not there."""
        return [line for used in names for line in self._problems(used)]

    def find(self, module: str, name: str) -> Found | None:
        """The definition of `name` (`function`, `Class` or `Class.member`) in `module`."""
        first, *members = name.split(".")
        found = self._top_level(module, first)
        for member in members:
            found = self._member(found, member) if found else None
        return found

    def _problems(self, used: Used) -> Iterator[str]:
        where, why = f"{used.module}.{used.name}", f"(used for: {used.reason})"
        found = self.find(used.module, used.name)
        if found is None:
            yield f"{where} is missing {why}"
            return
        for member in used.members:
            if self._member(found, member) is None:
                yield f"{where}.{member} is missing {why}"
        known = _parameters(found.node)
        for parameter in used.parameters:
            if known is not None and parameter not in known:
                yield f"{where} has no parameter {parameter!r} {why}"

    def _top_level(self, module: str, name: str) -> Found | None:
        tree = self._parse(module)
        if tree is None:
            return None
        if (self._path(module) or Path()).name == "__init__.py" and self._path(f"{module}.{name}"):
            return Found(module, tree)
        for node in _statements(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    known = self._imported(module, node, name) if alias.name == "*" else None
                    if known:
                        return known
                    if name == (alias.asname or alias.name):
                        return self._imported(module, node, alias.name)
            elif name in _defined(node):
                return Found(module, node)
        return None

    def _imported(self, module: str, node: ast.ImportFrom, name: str) -> Found | None:
        source = node.module or ""
        if node.level:
            is_package = (self._path(module) or Path()).name == "__init__.py"
            parts = module.split(".")
            package = parts[: len(parts) - node.level + is_package]
            source = ".".join([*package, source] if source else package)
        if not source.startswith("vllm"):
            return Found(module, node)
        return self._top_level(source, name)

    def _member(self, owner: Found, name: str) -> Found | None:
        node = owner.node
        if not isinstance(node, ast.ClassDef):
            return None
        for statement in node.body:
            if name in _defined(statement) or name in _assigned_to_self(statement):
                return Found(owner.module, statement)
        for base in node.bases:
            base_name = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base_name, ast.Name):
                parent = self._top_level(owner.module, base_name.id)
                if parent and (found := self._member(parent, name)):
                    return found
        return None

    def _parse(self, module: str) -> ast.Module | None:
        if module not in self._modules:
            path = self._path(module)
            self._modules[module] = ast.parse(path.read_text("utf-8")) if path else None
        return self._modules[module]

    def _path(self, module: str) -> Path | None:
        folder = self._root.joinpath(*module.split("."))
        files = (folder / "__init__.py", folder.with_suffix(".py"))
        return next((path for path in files if path.is_file()), None)


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """The module's own statements, also those under `if` and `try`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _statements(node)
        elif isinstance(node, ast.stmt):
            yield node


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | Function):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _assigned_to_self(method: ast.stmt) -> set[str]:
    if not isinstance(method, Function):
        return set()
    return {
        node.attr
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def _parameters(node: ast.AST) -> set[str] | None:
    """Names of a function's parameters; None where it takes any."""
    if not isinstance(node, Function) or node.args.kwarg:
        return None
    arguments = node.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return {argument.arg for argument in every}


def installed_root() -> Path:
    """The folder that the installed vLLM is in."""
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]


def main(arguments: list[str]) -> int:
    """Check the version in `arguments`, see the module's docstring; returns the exit status."""
    path = Path(arguments[0]) if arguments else installed_root()
    with tempfile.TemporaryDirectory() as folder:
        try:
            root = _unpacked(path, Path(folder))
        except (OSError, zipfile.BadZipFile) as error:
            print(f"vllm_source: {path} cannot be read: {error}", file=sys.stderr)
            return 2
        if not (root / "vllm" / "__init__.py").is_file():
            print(f"vllm_source: {path} holds no vLLM", file=sys.stderr)
            return 2
        problems = VllmSource(root).problems(VLLM_NAMES)
    for problem in problems:
        print(problem)
    print(f"{path}: {len(VLLM_NAMES)} names looked up, {len(problems)} problems", file=sys.stderr)
    return bool(problems)


def _unpacked(path: Path, folder: Path) -> Path:
    if path.is_dir():
        return path
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.endswith(".py")])
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

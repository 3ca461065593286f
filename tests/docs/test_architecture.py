# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md agrees with the files of the package, and with what they import."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import headkv_vllm
from tests.docs.blocks import PAGES, ROOT

PACKAGE = Path(headkv_vllm.__file__).parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@cache
def arrows() -> dict[str, set[str]]:
    """Each room of the page's listing, with the rooms that it may import."""
    (listing,) = re.findall(r"^```text\n(output/.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    entries = re.split(r"^(?=\w+/ )", listing, flags=re.MULTILINE)[1:]
    return {entry.partition("/")[0]: set(entry.partition("<-")[2].split()) for entry in entries}


def imports(room: str) -> Iterator[str]:
    """The other rooms that the modules of `room` import."""
    for file in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, rest = node.module.partition(".")
                other = rest.partition(".")[0]
                if package == "headkv_vllm" and other in ROOMS and other != room:
                    yield other


def test_the_page_lists_every_room() -> None:
    assert sorted(arrows()) == ROOMS


def test_the_page_names_every_package_and_every_module_outside_them() -> None:
    nested = [path.parent for path in PACKAGE.glob("*/**/__init__.py")]
    names = [f"{folder.name}/" for folder in nested]
    names += [file.name for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]
    assert [name for name in names if name not in PAGE] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_page_says(room: str) -> None:
    assert set(imports(room)) <= arrows()[room]


def test_arrows_run_one_way() -> None:
    assert list(TopologicalSorter(arrows()).static_order())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text()):
        assert any((folder / name).is_file() for folder in (ROOT, PACKAGE)), name

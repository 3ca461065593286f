# SPDX-License-Identifier: Apache-2.0
"""The fenced blocks of the markdown pages, and the marks that say what is done with each.

A mark is a comment on the line before a block:

    <!-- test: the server -->   starts the server that blocks marked `client` ask
    <!-- test: client -->       is run against that server, in the page's folder
    <!-- test: command -->      is run in the page's folder
    <!-- test: output -->       its lines are printed, in order, by the block before it; "..." skips
    <!-- run by: tests/.. -->   another test runs it
    <!-- needs: .. -->          is not run here, for want of what is named
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = (ROOT / "docs" / "user-guide.md", ROOT / "docs" / "operators-guide.md")
PAGES = (
    *(ROOT / folder / "README.md" for folder in ("", "configs", "docker", "scores")),
    *sorted((ROOT / "docs").glob("*.md")),
)

COMMANDS = ("sh", "python")
DATA = ("json", "yaml")
"""Languages of blocks that are loaded and not run: they need no mark."""

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"test: (the server|client|command|output)|run by: \S+|needs: .+")


@dataclass(frozen=True)
class Block:
    """One fenced block. mark: None when there is none. number: from 1, on its page."""

    page: Path
    number: int
    mark: str | None
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.number}"

    @property
    def is_run(self) -> bool:
        return self.mark in ("test: client", "test: command")


def blocks_of(page: Path) -> tuple[Block, ...]:
    """All blocks of `page`, in order."""
    found = enumerate(_BLOCK.finditer(page.read_text()), start=1)
    return tuple(Block(page, number, **match.groupdict()) for number, match in found)


def all_blocks() -> tuple[Block, ...]:
    """All blocks of all pages."""
    return tuple(block for page in PAGES for block in blocks_of(page))


def is_mark(text: str | None) -> bool:
    """Whether `text` is one of the marks above."""
    return text is not None and _MARK.fullmatch(text) is not None

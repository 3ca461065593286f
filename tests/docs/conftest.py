# SPDX-License-Identifier: Apache-2.0
"""What the tests of the pages share: a folder for each page, and the user guide's server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, all_blocks
from tests.docs.serving import GuideServer, environment

START_TIMEOUT = 480


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """A folder for each page, with what a clone has for its commands."""
    made = {page: tmp_path_factory.mktemp(page.stem) for page in PAGES}
    for folder in made.values():
        shutil.copytree(ROOT / "configs", folder / "configs")
    return made


@pytest.fixture(scope="session")
def server(folders: dict[Path, Path]) -> Iterator[GuideServer]:
    """The server of the block that starts one, of which there is one on all pages."""
    (block,) = (block for block in all_blocks() if block.mark == "test: the server")
    with GuideServer(block, folders[block.page], environment()) as running:
        running.wait_until_healthy(START_TIMEOUT)
        yield running

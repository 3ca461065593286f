# SPDX-License-Identifier: Apache-2.0
"""What the README and the pages under docs/ show is so: their commands run, their data loads."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs import flags
from tests.docs.blocks import COMMANDS, DATA, ROOT, Block, all_blocks, is_mark
from tests.docs.conftest import START_TIMEOUT
from tests.docs.serving import ADDRESS, environment

RUN_TIMEOUT = 120
BLOCKS = all_blocks()


def blocks(*chosen: Block) -> pytest.MarkDecorator:
    """A test for each of the blocks."""
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.name)


@blocks(*BLOCKS)
def test_nothing_is_forgotten(block: Block) -> None:
    assert block.language in ("", "text", *COMMANDS, *DATA)
    if block.language in COMMANDS or block.mark is not None:
        assert is_mark(block.mark), f"{block.name} has no mark: see tests/docs/blocks.py"
    if block.mark is not None and block.mark.startswith("run by: "):
        assert (ROOT / block.mark.removeprefix("run by: ")).is_file()


@blocks(*BLOCKS)
def test_it_can_be_read(block: Block) -> None:
    """Also where it is not run."""
    match block.language:
        case "json":
            json.loads(block.code)
        case "yaml":
            assert yaml.safe_load(block.code) is not None
        case "python":
            compile(block.code, block.name, "exec")
        case "sh":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)


@blocks(*(block for block in BLOCKS if block.language == "sh"))
def test_the_options_of_its_commands_exist(block: Block) -> None:
    for words in flags.commands(block.code):
        flags.check(words)


def test_the_chart_hands_vllm_options_that_exist() -> None:
    (values,) = (yaml.safe_load(b.code) for b in BLOCKS if b.code.startswith("servingEngineSpec"))
    (model,) = values["servingEngineSpec"]["modelSpec"]
    assert "--additional-config" in model["vllmConfig"]["extraArgs"]
    flags.check(["vllm", "serve", model["modelURL"], *model["vllmConfig"]["extraArgs"]])


def test_prometheus_takes_the_alerts(tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    (rules,) = (block.code for block in BLOCKS if block.code.startswith("groups:"))
    (tmp_path / "rules.yaml").write_text(rules)
    subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yaml"], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(START_TIMEOUT + RUN_TIMEOUT)
@blocks(*(block for block in BLOCKS if block.is_run))
def test_it_runs(block: Block, folders: dict[Path, Path], request: pytest.FixtureRequest) -> None:
    """The blocks of a page run in order: a later one may read what an earlier one wrote."""
    code = block.code
    if block.mark == "test: client":
        code = code.replace(ADDRESS, request.getfixturevalue("server").url)
    printed = run(block.language, code, folders[block.page])
    for other in BLOCKS:
        follows = (other.page, other.number) == (block.page, block.number + 1)
        if follows and other.mark == "test: output":
            assert_prints(printed, other.code)


def run(language: str, code: str, folder: Path) -> str:
    """What a block prints; it must end well."""
    command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": ["python", "-c"]}[language]
    ended = subprocess.run(
        [*command, code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def assert_prints(printed: str, shown: str) -> None:
    """The lines of `shown` are lines of `printed`, in order; "..." stands for any others."""
    lines = iter([line.rstrip() for line in printed.splitlines()])
    for line in shown.splitlines():
        is_there = line == "..." or line.rstrip() in lines
        assert is_there, f"{line!r} is not in, or not in this order:\n{printed}"

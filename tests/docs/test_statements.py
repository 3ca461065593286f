# SPDX-License-Identifier: Apache-2.0
"""What the pages say by name exists: metrics, settings, messages, features, links."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import httpx
import pytest
import vllm
from prometheus_client.parser import text_string_to_metric_families

import headkv_vllm
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.config import Settings
from headkv_vllm.engine.compatibility import RULES
from headkv_vllm.engine.metrics.definitions import METRICS
from headkv_vllm.request_overrides import BUDGET, COMPRESS_EVERY, KEEP_RATIO, POLICY
from tests.docs.blocks import GUIDES, PAGES, ROOT
from tests.docs.conftest import START_TIMEOUT
from tests.docs.serving import GuideServer

USER_GUIDE, SETTINGS = GUIDES[0], ROOT / "docs" / "settings.md"
OVERRIDES = (BUDGET, KEEP_RATIO, POLICY, COMPRESS_EVERY)
VLLM_SAYS = (
    "renderers/params.py",
    "v1/attention/backends/registry.py",
    "v1/core/kv_cache_utils.py",
    "v1/engine/coordinator.py",
    "v1/worker/cpu_worker.py",
)
"""Where in vLLM the messages stand that are vLLM's own."""


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(START_TIMEOUT)
def test_the_metrics_that_the_guides_name_are_there(server: GuideServer) -> None:
    text = httpx.get(f"{server.url}/metrics").raise_for_status().text
    families = text_string_to_metric_families(text)
    there = {name for f in families for name in (f.name, *(s.name for s in f.samples))}
    named = {
        name for page in GUIDES for name in re.findall(r"(?:headkv|vllm):\w+", page.read_text())
    }
    assert named
    for name in named:
        is_prefix = name.endswith("_")
        assert any(n.startswith(name) for n in there) if is_prefix else name in there, name


def test_the_user_guide_lists_all_our_metrics() -> None:
    listed = re.findall(r"`(headkv:\w+)`", USER_GUIDE.read_text())
    assert set(METRICS) <= set(listed)


def test_the_settings_page_lists_all_settings_and_request_overrides() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", SETTINGS.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted([*Settings.model_fields, *OVERRIDES])


@pytest.mark.parametrize("page", [SETTINGS, ROOT / "README.md"], ids=lambda page: page.stem)
def test_a_page_gives_the_defaults_of_settings(page: Path) -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) *\|", page.read_text(), re.MULTILINE))
    defaults = Settings().model_dump()
    settings = shown.keys() & defaults.keys()
    assert settings
    for name in settings:
        value = "" if defaults[name] is None else json.dumps(defaults[name])
        assert shown[name].strip("`") == value, name


def test_the_settings_page_lists_all_policies() -> None:
    rows = re.findall(r'^\| `"(\w+)"` \|', SETTINGS.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(POLICIES)


@pytest.mark.parametrize("feature", [rule.feature for rule in RULES])
def test_the_user_guide_lists_what_is_refused(feature: str) -> None:
    assert feature in USER_GUIDE.read_text().replace("`", "")


def messages() -> list[str]:
    """The messages in the tables of "Trouble-shooting"."""
    part = USER_GUIDE.read_text().partition("\n## Trouble-shooting\n")[2]
    return re.findall(r"^\| (?:warning )?`([^`]{20,})` \|", part, re.MULTILINE)


@pytest.fixture(scope="module")
def said() -> tuple[str, ...]:
    """Every text that the package can say, and those parts of vLLM."""
    ours = Path(headkv_vllm.__file__).parent.rglob("*.py")
    theirs = (Path(vllm.__file__).parent / name for name in VLLM_SAYS)
    return tuple(text for file in (*ours, *theirs) for text in texts(file))


def texts(file: Path) -> Iterator[str]:
    """The string constants of a module, an f-string's one by one."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("message", messages())
def test_a_message_can_be_met(message: str, said: tuple[str, ...]) -> None:
    """Between "…" and an argument's name, which stand for what differs."""
    for part in re.split(r"…|: |\bheadkv_\w+", message):
        words = part.strip(" ()")
        assert len(words) < 6 or any(words in text for text in said), words


def refusals() -> set[str]:
    """How the longest fixed part begins of every message that is raised while a server runs."""
    folder = Path(headkv_vllm.__file__).parent
    files = [folder / name for name in ("config.py", "request_overrides.py")]
    files += [*(folder / "engine").rglob("*.py"), *(folder / "server").rglob("*.py")]
    raised = (
        node
        for f in files
        for node in ast.walk(ast.parse(f.read_text()))
        if type(node) is ast.Raise
    )
    parts = ([n.value for n in ast.walk(node) if is_text(n)] for node in raised)
    return {max(fixed, key=len).strip()[:20] for fixed in parts if fixed}


def is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value


@pytest.mark.parametrize("beginning", sorted(refusals()))
def test_no_refusal_is_missing(beginning: str) -> None:
    assert beginning in USER_GUIDE.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_are_short(page: Path) -> None:
    """Except tables, code and pictures, which cannot be broken."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = (line for line in prose.splitlines() if not line.startswith(("|", "![")))
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize(("page", "most"), [("README.md", 120), ("docs/architecture.md", 235)])
def test_a_page_stays_short(page: str, most: int) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= most


def anchors(page: Path) -> set[str]:
    """What links to a page's headings end with."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

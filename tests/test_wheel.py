# SPDX-License-Identifier: Apache-2.0
"""The wheel holds all that an installation needs, and is found by vLLM."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROBE = """
import json, os
from pathlib import Path
import headkv_vllm
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.resources import configs_dir, scores_dir
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.library import find_bundled
print(json.dumps({
    "package": headkv_vllm.__file__,
    "checkpoint": sorted(os.listdir(checkpoint_path())),
    "configs": sorted(os.listdir(configs_dir())),
    "scores": sorted(os.listdir(scores_dir())),
    "bundled": str(find_bundled(identify_checkpoint(checkpoint_path()))),
}))
"""


def run(*command: object, cwd: Path) -> str:
    ended = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    run(*build, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this package alone, from the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", folder, wheel, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def distribution(installed: Path) -> Distribution:
    (metadata,) = installed.glob("*.dist-info")
    return PathDistribution(metadata)


def test_the_installed_package_finds_its_data(installed: Path) -> None:
    probe = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}){PROBE}"]
    found = json.loads(run(*probe, cwd=installed.parent))
    package = installed / "headkv_vllm"
    assert found["package"] == str(package / "__init__.py")
    assert found["bundled"] == str(package / "_data" / "scores" / "needle.json")
    for name in ("configs", "scores"):
        assert found[name] == sorted(path.name for path in (ROOT / name).iterdir())
    checkpoint = ROOT / "headkv_vllm" / "needle" / "checkpoint"
    assert found["checkpoint"] == sorted(path.name for path in checkpoint.iterdir())
    assert "model.safetensors" in found["checkpoint"]


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    modules = {name for name in names if name.endswith(".py")}
    sources = (ROOT / "headkv_vllm").rglob("*.py")
    assert modules == {str(path.relative_to(ROOT)) for path in sources}
    assert {name.split("/")[0] for name in names} == {"headkv_vllm"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_holds_the_dashboard(wheel: Path) -> None:
    folder = "headkv_vllm/server/dashboard/"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(folder)}
    assert held == {folder + path.name for path in (ROOT / folder).iterdir()}
    assert folder + "index.html" in held


def test_vllm_will_find_the_plugin(distribution: Distribution) -> None:
    points = {(point.group, point.name): point.value for point in distribution.entry_points}
    assert points["vllm.general_plugins", "headkv"] == "headkv_vllm.engine.plugin:register"
    assert points["vllm.platform_plugins", "headkv"] == "headkv_vllm.engine.plugin:platform"
    routes = "headkv_vllm.server.endpoint:HeadKVEndpoint"
    assert points["vllm.endpoint_plugins", "headkv"] == routes
    assert points["console_scripts", "headkv"] == "headkv_vllm.cli.main:app"


def test_the_metadata_name_the_vllm_versions(distribution: Distribution) -> None:
    assert distribution.metadata["Name"] == "headkv-vllm"
    assert "vllm<0.34,>=0.32" in (distribution.requires or [])
    assert distribution.metadata["Requires-Python"] == ">=3.11"
    assert distribution.metadata["License-Expression"] == "Apache-2.0"


def test_the_installed_command_runs(installed: Path) -> None:
    command = installed / "bin" / "headkv"
    shown = run("env", f"PYTHONPATH={installed}", command, "needle", "path", cwd=installed.parent)
    assert Path(shown.strip()) == installed / "headkv_vllm" / "needle" / "checkpoint"

# SPDX-License-Identifier: Apache-2.0
"""Shell scripts: what shellcheck says of them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / name for name in ("scripts", "docker", ".ci")]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def scripts() -> list[Path]:
    """Every file in `FOLDERS` that bash would run."""
    files = sorted(path for folder in FOLDERS for path in folder.iterdir() if path.is_file())
    return [path for path in files if path.read_bytes().startswith(b"#!/usr/bin/env bash\n")]


def shellcheck(*files: Path) -> str:
    """What shellcheck finds in `files`: nothing where all is well."""
    command = [SHELLCHECK, "--format", "gcc", *files]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(not SHELLCHECK.exists(), reason="shellcheck is there on x86_64 only")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    names = {path.name for path in scripts()}
    assert {"setup", "test", "system-packages", "entrypoint.sh", "run"} <= names
    assert shellcheck(*scripts()) == ""
    careless = tmp_path / "careless"
    careless.write_text("#!/usr/bin/env bash\nrm -rf $1/*\n")
    assert "SC2086" in shellcheck(careless)


def test_every_script_stops_at_its_first_mistake() -> None:
    for path in scripts():
        flags = "set -uo pipefail" if path.parent.name == ".ci" else "set -euo pipefail"
        assert f"\n{flags}\n" in path.read_text(), path

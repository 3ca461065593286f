# SPDX-License-Identifier: Apache-2.0
"""Requests made from our routes' own schema, and against it: every answer fits the schema."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.guarded_server import KEY, GuardedServer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
# What a server allows besides the schema depends on its settings, such as budgets above its window.
NOT_CHECKED = "positive_data_acceptance"


def test_every_answer_fits_the_schema(guarded_server: GuardedServer, tmp_path: Path) -> None:
    command = [SCHEMATHESIS, "run", f"{guarded_server.url}/openapi.json"]
    command += ["--include-path-regex", "headkv", "--header", f"Authorization: Bearer {KEY}"]
    command += ["--phases", "examples,coverage,fuzzing", "--exclude-checks", NOT_CHECKED]
    command += ["--max-examples", "60", "--max-time", "60", "--request-timeout", "30"]
    command += ["--seed", "1", "--generation-database", "none", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 selected" in done.stdout, done.stdout

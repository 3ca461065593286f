# SPDX-License-Identifier: Apache-2.0
"""docker/compose.yaml: valid, and no wider open than it says."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.images import DOCKER, instructions

COMPOSE = DOCKER / "compose.yaml"
PINNED = re.compile(r"[a-z/]+:v?\d+\.\d+\.\d+")


@cache
def compose_command() -> list[str]:
    """`docker compose`, or the older `docker-compose`; skips the test when there is neither."""
    if shutil.which("docker"):
        plugin = ["docker", "compose"]
        if not subprocess.run([*plugin, "version"], capture_output=True, timeout=60).returncode:
            return plugin
    if not shutil.which("docker-compose"):
        pytest.skip("neither docker compose nor docker-compose is installed")
    return ["docker-compose"]


@cache
def rendered(**environment: str) -> dict[str, Any]:
    """The file as Compose understands it, with `environment` and nothing else that it reads."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ended = subprocess.run(
        [*compose_command(), "-f", COMPOSE, "config"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**kept, "COMPOSE_PROFILES": "gpu", **environment},
    )
    assert ended.returncode == 0, ended.stderr
    return dict(yaml.safe_load(ended.stdout))


def is_valid(file: Path) -> bool:
    """Whether `file` is what the Compose specification's own schema describes."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, capture_output=True, timeout=120).returncode == 0


def host_address(port: Any) -> str:
    """Of "127.0.0.1:8000:8000/tcp", or of the mapping that newer versions write."""
    return str(port["host_ip"]) if isinstance(port, dict) else str(port).split(":")[0]


def source(volume: Any) -> str:
    return str(volume["source"]) if isinstance(volume, dict) else str(volume).split(":")[0]


def test_it_is_valid(tmp_path: Path) -> None:
    assert is_valid(COMPOSE)
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "healthchecks:"))
    assert not is_valid(broken)


def test_compose_takes_it() -> None:
    services = rendered()["services"]
    assert set(services) == {"headkv", "headkv-gpu", "prometheus", "grafana"}
    assert services["headkv-gpu"]["profiles"] == ["gpu"]
    assert services["grafana"]["depends_on"]["prometheus"]["condition"] == "service_healthy"


def test_every_service_is_pinned_checked_and_run_by_an_ordinary_user() -> None:
    for service in rendered()["services"].values():
        if "build" in service:
            image = instructions(DOCKER.parent / service["build"]["dockerfile"])
            user, is_checked = image["USER"], "HEALTHCHECK" in image
        else:
            assert PINNED.fullmatch(service["image"])
            user, is_checked = service["user"], "healthcheck" in service
        assert is_checked and int(user.split(":")[0]) > 0
        assert service["cap_drop"] == ["ALL"]


def test_ports_are_open_for_this_machine_alone_unless_asked_otherwise() -> None:
    for address, environment in (("127.0.0.1", {}), ("0.0.0.0", {"ADDRESS": "0.0.0.0"})):
        for service in rendered(**environment)["services"].values():
            assert [host_address(port) for port in service["ports"]] == [address]


def test_the_environment_chooses_model_and_key() -> None:
    serve = "Qwen/Qwen3-0.6B --max-model-len 8192"
    for service in ("headkv", "headkv-gpu"):
        default = rendered()["services"][service]
        assert not default.get("command") and default["environment"]["VLLM_API_KEY"] == ""
        given = rendered(HEADKV_SERVE=serve, VLLM_API_KEY="secret")["services"][service]
        assert given["environment"]["VLLM_API_KEY"] == "secret"
        assert given["command"] in (serve, serve.split())


def test_what_is_mounted_from_here_is_here() -> None:
    services = rendered()["services"].values()
    sources = [source(volume) for service in services for volume in service["volumes"]]
    here = [Path(name) for name in sources if name.startswith("/")]
    assert len(here) == 3 and all(path.exists() for path in here)


def test_prometheus_takes_its_file_and_finds_the_server() -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    file = DOCKER / "prometheus.yaml"
    subprocess.run(["promtool", "check", "config", file], check=True, timeout=60)
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    ((target,),) = [static["targets"] for static in job["static_configs"]]
    host, port = target.split(":")
    services = rendered()["services"]
    assert host in services and port == instructions(DOCKER / "Dockerfile.cpu")["EXPOSE"]
    assert services["headkv-gpu"]["networks"]["default"]["aliases"] == [host]

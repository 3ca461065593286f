# SPDX-License-Identifier: Apache-2.0
"""How vLLM finds us, and that it is stock vLLM as long as nobody asks for our backend."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from functools import partial
from importlib.metadata import entry_points

import pytest
import torch
from vllm import envs
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import builtin_platform_plugins, current_platform
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import AttentionSelectorConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from headkv_vllm.engine import plugin
from headkv_vllm.engine.attention.cpu import HeadKVCpuBackend
from headkv_vllm.engine.kv_cache import HeadKVManager, HeadKVSpec
from headkv_vllm.engine.names import CPU_BACKEND_PATH, PLATFORM_PATHS
from headkv_vllm.engine.platforms.cpu import HeadKVCpuPlatform
from headkv_vllm.engine.scheduler import HeadKVScheduler
from headkv_vllm.errors import UnsupportedError
from tests.engine.helpers.bookkeeping_engine import COMMON, engine_config, write_model

if not current_platform.is_cpu():
    pytest.skip("needs vLLM's CPU build", allow_module_level=True)


FLAGS = (
    {},
    {"attention_backend": "CPU_ATTN"},
    {"block_size": 64},
    {"enable_prefix_caching": False},
)
PARTS = ("cache_config", "scheduler_config", "attention_config", "parallel_config")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def selector_config():
    """The selector's question for an ordinary decoder layer, as vLLM puts it."""
    return AttentionSelectorConfig(
        head_size=64, dtype=torch.float32, kv_cache_dtype="auto", block_size=32
    )


@pytest.fixture(scope="module")
def stock_configs(model):
    """What stock vLLM makes of each of FLAGS, in a process that takes its own CPU platform."""
    code = f"""
import json
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
assert type(current_platform).__qualname__ == "CpuPlatform", type(current_platform)
for flags in {FLAGS!r}:
    config = EngineArgs(**{flags_without_ours(model)!r}, **flags).create_engine_config()
    print("CONFIG", json.dumps([repr(getattr(config, part)) for part in {PARTS!r}]))
"""
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu"}
    lines = run_python(code, environment).splitlines()
    found = [json.loads(line.removeprefix("CONFIG ")) for line in lines if "CONFIG " in line]
    return dict(zip(map(str, FLAGS), found, strict=True))


def run_python(code, environment=None):
    """What `code` prints in a new process."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def flags_without_ours(model):
    ours = {"attention_backend", "block_size"}
    return {"model": str(model), **{k: v for k, v in COMMON.items() if k not in ours}}


def test_vllm_is_told_of_both_plugins():
    for group, name in (
        ("vllm.general_plugins", "register"),
        ("vllm.platform_plugins", "platform"),
    ):
        (found,) = [point for point in entry_points(group=group) if point.name == "headkv"]
        assert found.load() is getattr(plugin, name)


def test_registering_again_changes_nothing():
    plugin.register()
    before, path = dict(AttentionBackendEnum.__members__), AttentionBackendEnum["HEADKV"].get_path()
    plugin.register()
    assert dict(AttentionBackendEnum.__members__) == before
    assert AttentionBackendEnum["HEADKV"].get_path() == path
    assert AttentionBackendEnum["HEADKV"].get_class() is HeadKVCpuBackend


@pytest.mark.slow
def test_a_configuration_is_unpickled_where_no_plugin_was_loaded(model):
    """As a spawned engine process does."""
    config = engine_config(model, {"budget": 99})
    pickled = pickle.dumps([AttentionBackendEnum.CPU_ATTN, config])
    code = f"""
import pickle
from vllm.v1.attention.backends.registry import AttentionBackendEnum
assert "HEADKV" not in AttentionBackendEnum.__members__
stock, config = pickle.loads({pickled!r})
assert stock is AttentionBackendEnum.CPU_ATTN
assert config.attention_config.backend is AttentionBackendEnum["HEADKV"]
print(AttentionBackendEnum["HEADKV"].get_path(), config.additional_config["headkv"]["budget"])
"""
    assert run_python(code).split()[-2:] == [CPU_BACKEND_PATH, "99"]


@pytest.mark.parametrize("flag", ["headkv", "HEADKV"])
def test_vllms_own_parser_takes_the_flag(flag, model):
    plugin.register()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    given = ["--model", str(model), "--skip-tokenizer-init", "--attention-backend", flag]
    config = EngineArgs.from_cli_args(parser.parse_args(given)).create_engine_config()
    assert config.attention_config.backend is AttentionBackendEnum["HEADKV"]


def test_our_platform_takes_the_place_of_vllms():
    assert type(current_platform) is HeadKVCpuPlatform
    assert plugin.platform() == PLATFORM_PATHS["vllm.platforms.cpu.CpuPlatform"]


def not_there():
    raise ImportError("no such library")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "rocm"])
def test_each_of_ours_extends_that_which_vllm_would_take(kind, monkeypatch):
    (path,) = [path for path in PLATFORM_PATHS if f".{kind}." in path]
    for other in builtin_platform_plugins:
        monkeypatch.setitem(builtin_platform_plugins, other, not_there)
    monkeypatch.setitem(builtin_platform_plugins, kind, lambda: path)
    assert plugin.platform() == PLATFORM_PATHS[path]


@pytest.mark.parametrize(
    "found",
    [
        {"cpu": None},
        {"cpu": "vllm.platforms.zen_cpu.ZenCpuPlatform"},
        {"cpu": "vllm.platforms.cpu.CpuPlatform", "xpu": "vllm.platforms.xpu.XPUPlatform"},
    ],
)
def test_other_platforms_are_left_alone(found, monkeypatch):
    for name in builtin_platform_plugins:
        monkeypatch.setitem(builtin_platform_plugins, name, partial(found.get, name))
    assert plugin.platform() is None


class OtherPlugin:
    """An entry point of a platform for hardware that is here, or not."""

    name = "other"

    def __init__(self, path):
        self.load = lambda: lambda: path


@pytest.mark.parametrize(
    ("path", "allowed", "is_ours"),
    [
        ("other.Platform", None, False),
        ("other.Platform", ["headkv"], True),
        (None, None, True),
    ],
    ids=["another platform", "left out by VLLM_PLUGINS", "other hardware"],
)
def test_another_plugins_platform_goes_first(path, allowed, is_ours, monkeypatch):
    """vLLM ends where two plugins bring a platform."""
    monkeypatch.setattr(plugin, "entry_points", lambda group: [OtherPlugin(path)])
    monkeypatch.setattr(envs, "VLLM_PLUGINS", allowed)
    assert (plugin.platform() is not None) == is_ours


def test_the_backend_is_chosen_when_it_is_asked_for(selector_config):
    plugin.register()
    ours = AttentionBackendEnum["HEADKV"]
    chosen = HeadKVCpuPlatform.get_attn_backend_cls(ours, selector_config)
    assert chosen == CPU_BACKEND_PATH


@pytest.mark.parametrize("selected", [None, "CPU_ATTN", "FLASH_ATTN"])
def test_every_other_choice_is_vllms(selector_config, selected):
    backend = AttentionBackendEnum[selected] if selected else None
    chosen = HeadKVCpuPlatform.get_attn_backend_cls(backend, selector_config)
    assert chosen == CpuPlatform.get_attn_backend_cls(backend, selector_config)
    assert chosen == AttentionBackendEnum.CPU_ATTN.get_path()


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_without_our_backend_the_configuration_is_stock_vllms(stock_configs, model, flags):
    config = EngineArgs(**flags_without_ours(model), **flags).create_engine_config()
    assert config.cache_config.block_size == flags.get("block_size", 128)
    assert config.scheduler_config.scheduler_cls is None
    assert config.additional_config == {}
    assert [repr(getattr(config, part)) for part in PARTS] == stock_configs[str(flags)]


def test_with_our_backend_blocks_are_small_and_the_scheduler_is_ours(model):
    config = engine_config(model, {}, block_size=None)
    assert config.cache_config.block_size == 32
    assert config.scheduler_config.get_scheduler_cls() is HeadKVScheduler
    assert config.additional_config["headkv_scores"]["values"] == [[1.0, 1.0], [1.0, 1.0]]


def test_our_spec_has_our_manager():
    spec = HeadKVSpec(block_size=16, num_kv_heads=2, head_size=16, dtype=torch.float32)
    assert KVCacheSpecRegistry.get_manager_class(spec) is HeadKVManager


def test_a_layer_of_full_attention_gets_our_spec_with_all_its_fields():
    spec = FullAttentionSpec(block_size=48, num_kv_heads=3, head_size=80, dtype=torch.bfloat16)
    ours = HeadKVCpuBackend.customize_spec(spec)
    assert type(ours) is HeadKVSpec
    assert {field.name: getattr(ours, field.name) for field in fields(spec)} == vars(spec)


def test_a_layer_of_another_kind_is_refused():
    spec = SlidingWindowSpec(
        block_size=16, num_kv_heads=2, head_size=16, dtype=torch.float32, sliding_window=64
    )
    with pytest.raises(UnsupportedError, match="layers with SlidingWindowSpec"):
        HeadKVCpuBackend.customize_spec(spec)


REGISTER_ON = """
import sys
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform

class OtherCpuPlatform(CpuPlatform):
    pass

vllm.platforms._current_platform = {"plain": CpuPlatform, "other": OtherCpuPlatform}[sys.argv[1]]()
from headkv_vllm.engine.plugin import register
register()
from vllm.v1.attention.backends.registry import AttentionBackendEnum
print(type(vllm.platforms.current_platform).__name__, "HEADKV" in AttentionBackendEnum.__members__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "found"),
    [("plain", "HeadKVCpuPlatform True"), ("other", "OtherCpuPlatform False")],
)
def test_a_cpu_platform_that_would_ignore_the_flag_becomes_ours_or_never_knows_it(
    platform: str, found: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REGISTER_ON, platform],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [found], done.stderr

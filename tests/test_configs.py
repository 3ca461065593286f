# SPDX-License-Identifier: Apache-2.0
"""`vllm serve --config configs/NAME.yaml`, up to the point where weights would be read."""

import json
from argparse import Namespace
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.models.registry import _ModelInfo
from vllm.utils.argparse_utils import FlexibleArgumentParser

from headkv_vllm.config import Settings
from headkv_vllm.engine.platforms.platform import is_selected
from headkv_vllm.engine.settings import read_settings
from headkv_vllm.errors import HeadKVError
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.resources import configs_dir
from tests.published_models import REFUSED, SERVED, Config


@pytest.fixture(scope="module")
def parser() -> FlexibleArgumentParser:
    """The parser of `vllm serve`, as vLLM's own command makes it."""
    whole = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(whole.add_subparsers(dest="subparser"))
    return whole


@pytest.fixture(autouse=True)
def _resolve_models_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would start a process for each model class, only to see what it supports."""
    lazily_registered = type(ModelRegistry.models["LlamaForCausalLM"])
    monkeypatch.setattr(
        lazily_registered,
        "inspect_model_cls",
        lambda model: _ModelInfo.from_model_cls(model.load_model_cls()),
    )


def config_of(parser: FlexibleArgumentParser, file: Path, model: Path) -> VllmConfig:
    """What vLLM makes of `vllm serve MODEL --config FILE`, weights apart.

    Raises AssertionError, one line with the file and what vLLM or the plugin has against it.
    """
    arguments = parse(parser, file, model)
    try:
        Settings.parse(arguments.additional_config["headkv"])
        return AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    except (HeadKVError, ValueError) as error:
        raise AssertionError(f"{file.name}: {error}") from error


def parse(parser: FlexibleArgumentParser, file: Path, model: Path) -> Namespace:
    """What `vllm serve` reads from `file`. Raises AssertionError as `config_of` does."""
    for flag in yaml.safe_load(file.read_text()):
        # vLLM passes over a flag that is false in the file, whether it knows the flag or not.
        assert f"--{flag}" in known_flags(), f"{file.name}: vllm serve has no flag {flag!r}"
    said = StringIO()
    try:
        with redirect_stderr(said):
            arguments = parser.parse_args(["serve", str(model), "--config", str(file)])
    except SystemExit:
        raise AssertionError(f"{file.name}: {said.getvalue().splitlines()[-1]}") from None
    ServeSubcommand().validate(arguments)
    arguments.model = arguments.model_tag  # as `vllm serve` does
    return arguments


@cache
def known_flags() -> frozenset[str]:
    """All flags of `vllm serve`."""
    return frozenset(make_arg_parser(FlexibleArgumentParser())._option_string_actions)


def write_config(folder: Path, config: Config) -> Path:
    """A model's folder as far as vLLM reads it before it loads weights."""
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flags(file: str) -> dict[str, Any]:
    """What the file says."""
    return dict(yaml.safe_load((configs_dir() / file).read_text()))


def test_every_file_is_tested_with_the_model_that_it_names() -> None:
    for file in configs_dir().glob("*.yaml"):
        if file.name != "needle.yaml":
            assert SERVED[flags(file.name)["model"]].file == file.name


@pytest.mark.parametrize("model", SERVED)
def test_vllm_and_the_plugin_take_it(
    parser: FlexibleArgumentParser, model: str, tmp_path: Path
) -> None:
    file, published = SERVED[model]
    folder = write_config(tmp_path, published)
    config = config_of(parser, configs_dir() / file, folder)
    model_config, block_size = config.model_config, config.cache_config.block_size
    assert is_selected(config) and config.scheduler_config.scheduler_cls is not None
    assert model_config.max_model_len == flags(file)["max-model-len"]
    assert block_size == flags(file)["block-size"]
    assert str(model_config.dtype) == "torch." + published["torch_dtype"]
    # As the README says; 2: keys and values, and 2 bytes for each number.
    num_heads = model_config.get_total_num_hidden_layers() * model_config.get_total_num_kv_heads()
    num_bytes = 2 * 2 * num_heads * model_config.get_head_size()
    whole = f"{num_bytes * model_config.max_model_len / 2**30:.3g} GiB"
    row = f"| `{model}` | `{file}` | {num_bytes // 1024} KiB | {whole} |"
    assert row in (configs_dir() / "README.md").read_text().splitlines()


def test_the_needle_file(parser: FlexibleArgumentParser) -> None:
    config = config_of(parser, configs_dir() / "needle.yaml", checkpoint_path())
    assert config.scheduler_config.scheduler_cls is not None
    assert read_settings(config).budget == 128


@pytest.mark.parametrize("model", REFUSED)
def test_a_model_with_a_sliding_window_is_refused(
    parser: FlexibleArgumentParser, model: str, tmp_path: Path
) -> None:
    file, published = REFUSED[model]
    folder = write_config(tmp_path, published)
    shortened = tmp_path / file
    shortened.write_text(yaml.safe_dump({**flags(file), "max-model-len": 2048}))
    with pytest.raises(AssertionError, match=r"sliding-window attention \(32 of 32 layers\)"):
        config_of(parser, shortened, folder)


def test_the_command_line_wins(parser: FlexibleArgumentParser) -> None:
    file = str(configs_dir() / "qwen3.yaml")
    own = parser.parse_args(["serve", "--config", file])
    assert (own.model, own.model_tag, own.max_model_len) == ("Qwen/Qwen3-8B", None, 40960)
    length = ["--max-model-len", "16384"]
    other = parser.parse_args(["serve", "Qwen/Qwen3-0.6B", "--config", file, *length])
    assert (other.model_tag, other.max_model_len) == ("Qwen/Qwen3-0.6B", 16384)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max-model-length": 8}, "vllm serve has no flag 'max-model-length'"),
        ({"enforce-eagre": False}, "vllm serve has no flag 'enforce-eagre'"),
        ({"max-model-len": "long"}, "argument --max-model-len: invalid"),
        ({"attention-backend": "headkw"}, "Unknown attention backend: 'HEADKW'"),
        (
            {"additional-config": {"headkv": {"budgett": 1024}}},
            "unknown headkv setting 'budgett': did you mean 'budget'?",
        ),
        (
            {"additional-config": {"headkv": {"budget": 4}}},
            "headkv setting budget=4 is not allowed",
        ),
        ({"block-size": 24}, "does not support --block-size (24): it must be a multiple of 16"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_broken_file_is_named_with_its_mistake(
    parser: FlexibleArgumentParser, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    file, published = SERVED["Qwen/Qwen3-0.6B"]
    broken = tmp_path / file
    broken.write_text(yaml.safe_dump({**flags(file), **change}))
    with pytest.raises(AssertionError) as raised:
        config_of(parser, broken, write_config(tmp_path, published))
    line = str(raised.value).splitlines()[0]
    assert line.startswith(f"{file}: ") and reason in line

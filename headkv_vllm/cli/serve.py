# SPDX-License-Identifier: Apache-2.0
"""`headkv serve MODEL ...`: runs `vllm serve` with the headkv backend and its routes."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import typer
import yaml
from typer.core import TyperCommand

from headkv_vllm.engine.names import PLUGIN_NAME
from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.output.command_line import readable_errors

PLUGINS_VARIABLE: Final = "VLLM_PLUGINS"
LOADED_BY_DEFAULT: Final = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
"""vLLM loads all plugins of these groups if VLLM_PLUGINS is not set."""
ENDPOINTS: Final = "vllm.endpoint_plugins"
"""vLLM loads plugins of this group, which add routes, only if VLLM_PLUGINS names them."""


HELP: Final = """\
Usage: headkv serve MODEL [any option of vllm serve]

Serves MODEL with a compressed KV cache. The command adds these, and then runs vllm serve:

  --attention-backend headkv   unless a backend is given, here or in the --config file
  VLLM_PLUGINS                 this plugin and all plugins that vLLM loads by default

All other arguments go to vllm serve. Log, exit codes and Ctrl-C are those of vllm serve.

Examples:

  headkv serve $(headkv needle path) --config configs/needle.yaml
  headkv serve MODEL --api-key KEY --additional-config '{"headkv": {"budget": 512}}'

Then, on port 8000 unless --port is given:

  http://localhost:8000/headkv/dashboard    head scores, budgets, KV blocks in use
  http://localhost:8000/v1/headkv/stats     statistics; also config, scores and plan
  http://localhost:8000/docs                all routes, including those of this plugin

Other help:

  headkv serve --help=all    the options of vllm serve
  headkv check MODEL         whether a model will be served, without starting an engine
  headkv plan --help         the memory that a budget needs, without a server
"""


class PassedOn(TyperCommand):
    """A command that passes its arguments to another program. Click reads only a bare --help."""

    help_text = HELP

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" in args or "-h" in args:
            typer.echo(self.help_text, nl=False)
            ctx.exit()
        ctx.args = list(args)
        return []


def serve(context: typer.Context) -> None:
    """Serve MODEL with a compressed KV cache: vllm serve with more routes and a dashboard."""
    arguments = context.args
    with readable_errors():
        arguments = with_backend(arguments)
    environment = {**os.environ, PLUGINS_VARIABLE: plugins(os.environ)}
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
    os.execve(sys.executable, command, environment)


def with_backend(arguments: Sequence[str]) -> list[str]:
    """`arguments` of `vllm serve`, with our backend unless they name one.

    Raises SettingsError for the reasons of `check_model_argument`.
    """
    check_model_argument(arguments)
    backend = [] if names_backend(arguments) else ["--attention-backend", "headkv"]
    return [*arguments, *backend]


def check_model_argument(arguments: Sequence[str]) -> None:
    """Raises SettingsError when `arguments` have no model, or a folder that does not exist.

    Without a model vLLM loads one of its own choice. Without the folder vLLM asks the hub.
    """
    if _value("--help", arguments) is not None:
        return
    model = arguments[0] if arguments and not arguments[0].startswith("-") else None
    model = model or _value("--model", arguments)
    if model is not None:
        _check_folder(model)
    elif "model" not in _config(arguments):
        raise SettingsError(
            "no MODEL: give a folder or a hub's name first, as in headkv serve MODEL --port 8000, "
            "or the key model in the file of --config"
        )


def names_backend(arguments: Sequence[str]) -> bool:
    """Whether `arguments`, or their --config file, choose an attention backend."""
    given = {**_config(arguments), **_options(arguments)}
    if "attention-backend" in given or "attention-config.backend" in given:
        return True
    return any('"backend"' in str(given.get(name, "")) for name in ("attention-config", "ac"))


def plugins(environment: Mapping[str, str]) -> str:
    """VLLM_PLUGINS with this plugin and all plugins that vLLM loads without this command."""
    given = environment.get(PLUGINS_VARIABLE)
    if given is not None:
        names = [name for name in given.split(",") if name]
    else:
        names = [point.name for group in LOADED_BY_DEFAULT for point in entry_points(group=group)]
        _report_routes({*names} - {PLUGIN_NAME})
    return ",".join(dict.fromkeys([*names, PLUGIN_NAME]))


def _report_routes(names: set[str]) -> None:
    """Print which other plugins add routes. VLLM_PLUGINS selects the plugins of all groups."""
    for name in sorted(names & {point.name for point in entry_points(group=ENDPOINTS)}):
        typer.echo(
            f"headkv: plugin {shown(name)} adds routes too, because VLLM_PLUGINS names it; "
            "set VLLM_PLUGINS yourself to leave it out",
            err=True,
        )


def _check_folder(model: str) -> None:
    is_path = model.startswith(("/", ".", "~")) or (model.count("/") > 1 and "://" not in model)
    if is_path and not os.path.exists(model):
        raise SettingsError(f"MODEL is {shown(model)}, but there is no such folder")


def _config(arguments: Sequence[str]) -> dict[str, str]:
    """The top level of the --config file, in vLLM's spelling of options; empty without one.

    Raises SettingsError when it cannot be read.
    """
    path = _value("--config", arguments)
    if path is None:
        return {}
    try:
        read = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"--config is {shown(path)}, which cannot be read: {reason}") from None
    if not isinstance(read, dict):
        raise SettingsError(f"--config is {shown(path)}, which has no options: {shown(read)}")
    return {str(key).replace("_", "-"): _as_text(value) for key, value in read.items()}


def _as_text(value: Any) -> str:
    return "".join(f'"{key}"' for key in value) if isinstance(value, dict) else str(value)


def _value(option: str, arguments: Sequence[str]) -> str | None:
    return _options(arguments).get(option.removeprefix("--"))


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """The value of each option, after "=" or as the next argument, in vLLM's spelling."""
    found = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            found[name.replace("_", "-")] = value if equals else following
    return found

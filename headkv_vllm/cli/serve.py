# SPDX-License-Identifier: Apache-2.0
"""`headkv serve MODEL ...`: `vllm serve` with our backend and our routes."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import typer
import yaml
from typer.core import TyperCommand

from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.output.command_line import readable_errors

PLUGIN: Final = "headkv"
PLUGINS_VARIABLE: Final = "VLLM_PLUGINS"
LOADED_BY_DEFAULT: Final = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
"""vLLM's groups of plugins that it loads whole where VLLM_PLUGINS is not set."""
ENDPOINTS: Final = "vllm.endpoint_plugins"
"""The one it loads from only where VLLM_PLUGINS names the plugin: they add routes."""


HELP: Final = """\
Usage: headkv serve MODEL [any option of vllm serve]

Serves MODEL with a compressed KV cache. It adds what is needed and becomes vllm serve:

  --attention-backend headkv   unless a backend is named, here or in the --config file
  VLLM_PLUGINS                 this plugin, beside all those that vLLM would load anyway

Everything else is passed on as it is; log, exit codes and Ctrl-C are those of vllm serve.

Examples:

  headkv serve $(headkv needle path) --config configs/needle.yaml
  headkv serve MODEL --api-key KEY --additional-config '{"headkv": {"budget": 512}}'

Then, on port 8000 unless --port says otherwise:

  http://localhost:8000/headkv/dashboard    head scores, budgets, KV blocks in use
  http://localhost:8000/v1/headkv/stats     the numbers; also config, scores and plan
  http://localhost:8000/docs                all routes, those of this plugin among them

Other help:

  headkv serve --help=all    the options of vllm serve
  headkv plan --help         what a budget comes to, without a server
"""


class PassedOn(TyperCommand):
    """A command whose arguments are another program's: click reads none but a bare --help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" in args or "-h" in args:
            typer.echo(HELP, nl=False)
            ctx.exit()
        ctx.args = list(args)
        return []


def serve(context: typer.Context) -> None:
    """Serve MODEL with a compressed KV cache: vllm serve, and routes and a page to look at it."""
    arguments = context.args
    with readable_errors():
        check_model(arguments)
        backend = [] if names_backend(arguments) else ["--attention-backend", "headkv"]
    environment = {**os.environ, PLUGINS_VARIABLE: plugins(os.environ)}
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments, *backend]
    os.execve(sys.executable, command, environment)


def check_model(arguments: Sequence[str]) -> None:
    """Raises SettingsError when `arguments` name no model, or a folder that is not there.

    vLLM would load a model of its own choice in the one case, and ask the hub in the other.
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
            "or model: in the file that --config names"
        )


def names_backend(arguments: Sequence[str]) -> bool:
    """Whether `arguments`, or the --config file among them, choose an attention backend."""
    given = {**_config(arguments), **_options(arguments)}
    if "attention-backend" in given or "attention-config.backend" in given:
        return True
    return any('"backend"' in str(given.get(name, "")) for name in ("attention-config", "ac"))


def plugins(environment: Mapping[str, str]) -> str:
    """VLLM_PLUGINS with this plugin and every one that vLLM would load without this command."""
    named = environment.get(PLUGINS_VARIABLE)
    if named is not None:
        wanted = [name for name in named.split(",") if name]
    else:
        wanted = [point.name for group in LOADED_BY_DEFAULT for point in entry_points(group=group)]
        _tell_of_routes({*wanted} - {PLUGIN})
    return ",".join(dict.fromkeys([*wanted, PLUGIN]))


def _tell_of_routes(wanted: set[str]) -> None:
    """vLLM asks for plugins by name alone, so a name that another group has too adds its routes."""
    for name in sorted(wanted & {point.name for point in entry_points(group=ENDPOINTS)}):
        typer.echo(
            f"headkv: plugin {shown(name)} adds routes as well, now that VLLM_PLUGINS names it; "
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
        raise SettingsError(f"--config is {shown(path)}, which holds no options: {shown(read)}")
    return {str(key).replace("_", "-"): _as_text(value) for key, value in read.items()}


def _as_text(value: Any) -> str:
    return "".join(f'"{key}"' for key in value) if isinstance(value, dict) else str(value)


def _value(option: str, arguments: Sequence[str]) -> str | None:
    return _options(arguments).get(option.removeprefix("--"))


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """What follows each option, after "=" or as the next argument, in vLLM's spelling."""
    found = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            found[name.replace("_", "-")] = value if equals else following
    return found

# SPDX-License-Identifier: Apache-2.0
"""The `vllm serve` and `headkv` commands in a shell block, and whether their options exist."""

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache

import typer
from typer.core import TyperGroup
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from headkv_vllm.cli.main import app
from headkv_vllm.config import Settings

_ENDS = {"|", "&&", "||", ";", "&", ">", "<", ">>"}
_HERE_DOCUMENT = re.compile(r"<<'?(\w+)'?\n.*?\n\1$", re.DOTALL | re.MULTILINE)


def commands(code: str) -> Iterator[list[str]]:
    """The words of each `vllm serve` and each `headkv` command, without variables before it."""
    lines = _HERE_DOCUMENT.sub("", code).replace("\\\n", " ").splitlines()
    for line in lines:
        for words in _split(shlex.split(line, comments=True)):
            while words and "=" in words[0] and not words[0].startswith("-"):
                words = words[1:]
            if words[:1] == ["headkv"] or words[:2] == ["vllm", "serve"]:
                yield words


def check(words: list[str]) -> None:
    """Raises AssertionError when a command has an option that its program does not know."""
    known = _known(words)
    given = dict(zip(words, [*words[1:], ""], strict=True))
    for word, value in given.items():
        name = word.partition("=")[0]
        assert not name.startswith("--") or name in known, f"no option {name} in: {words}"
        if name == "--additional-config":
            Settings.parse(json.loads(value)["headkv"])


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if word in _ENDS:
            yield command
            command = []
        else:
            command.append(word)


def _known(words: list[str]) -> frozenset[str]:
    if words[0] == "vllm" or words[1] in ("serve", "check"):
        return _serve_options()
    command = typer.main.get_command(app)
    for word in words[1:]:
        if not isinstance(command, TyperGroup) or word.startswith("-"):
            break
        assert word in command.commands, f"no command {word!r} in: {words}"
        command = command.commands[word]
    options = (o for parameter in command.params for o in (*parameter.opts, "--help"))
    return frozenset(options)


@cache
def _serve_options() -> frozenset[str]:
    parser = make_arg_parser(FlexibleArgumentParser())
    return frozenset(parser._option_string_actions)

# SPDX-License-Identifier: Apache-2.0
"""The options of `headkv eval`, checked before anything starts."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from headkv_vllm.budgets.plan import BYTES_PER_ELEMENT
from headkv_vllm.config import PolicyName, ScoredPolicy
from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.evaluation.cells import FULL, GIVEN, Cell, CellCompression, compressions, grid

POLICIES: Final = (FULL, *get_args(PolicyName))
DTYPES: Final = tuple(name for name in BYTES_PER_ELEMENT if name != "fp8")
OWN_FLAGS: Final = (
    *("attention-backend", "additional-config", "block-size", "dtype", "max-model-len"),
    *("tokenizer", "served-model-name", "host", "port", "logits-processors", "kv-cache-dtype"),
    *("attention-config", "ac", "config"),
)
"""Flags of vLLM that the run sets itself, or that would change what it compares."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class EvalRequest:
    """One evaluation; the fields are the options of `headkv eval`.

    compressions: the compressions to compare. url: a running server, which is used instead of new
        ones. settings: headkv settings of all compressions, without policy and budget.
    max_tokens: a limit for the answer's tokens, besides the limit of the task.
    stock: whether stock vLLM serves the full cache; otherwise our server with budget 0 does.
    serve_arguments: more arguments of `vllm serve`.
    """

    model: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    compressions: tuple[CellCompression, ...]
    n: int
    seed: int
    out: Path
    settings: dict[str, Any]
    data: Path | None = None
    url: str | None = None
    tokenizer: str | None = None
    block_size: int = 16
    dtype: str = "auto"
    max_model_len: int | None = None
    chat: bool = False
    max_tokens: int | None = None
    question_agnostic: bool = False
    stock: bool = True
    concurrency: int = 8
    serve_arguments: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """All cells of the grid."""
        return grid(self.tasks, self.lengths, self.compressions)

    @property
    def server_settings(self) -> dict[str, Any]:
        """The settings of our server. Each request brings its own policy and budget.

        The policy is one that uses head scores, if there is one, so that the server loads them.
        """
        compressed = [one for one in self.compressions if one.is_compressed]
        if not compressed:
            return {**self.settings, "budget": 0}
        with_scores = [one for one in compressed if one.policy in get_args(ScoredPolicy)]
        own = (with_scores or compressed)[0].settings(self.settings)
        return {
            **self.settings,
            **own.model_dump(include={"policy", "budget", "keep_ratio"}, exclude_none=True),
        }


def parse_names(option: str, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Names between commas. Raises SettingsError, which names similar or all allowed names."""
    names = _parts(option, text, str)
    for name in names:
        if name not in allowed:
            near = get_close_matches(name, allowed) or allowed
            raise SettingsError(f"{option} has {shown(name)}, allowed are {', '.join(near)}")
    return names


def parse_lengths(text: str) -> tuple[int, ...]:
    """Prompt lengths between commas; 0 does not cut texts. Raises SettingsError."""
    return _parts("--lengths", text, lambda part: integer("--lengths", part, minimum=0))


def parse_compressions(
    policies: str | None, budgets: str | None, settings: dict[str, Any], url: str | None
) -> tuple[CellCompression, ...]:
    """The compressions to compare. Raises SettingsError, also for settings that conflict."""
    if url is not None:
        for option, value in (("--policies", policies), ("--budgets", budgets)):
            if value is not None:
                raise SettingsError(f"{option} cannot be given with --url: that server decides it")
        return (CellCompression(GIVEN),)
    names = parse_names("--policies", policies or f"{FULL},headkv,uniform", POLICIES)
    amounts = _parts("--budgets", budgets or "128", _budget)
    compared = tuple(compressions(names, amounts))
    for one in compared:
        if one.is_compressed:
            one.settings(settings)
    return compared


def parse_settings(text: str | None) -> dict[str, Any]:
    """The JSON object of --settings. Raises SettingsError."""
    try:
        settings = json.loads(text or "{}")
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise SettingsError(
            f"--settings is {shown(text)}, expected a JSON object such as '{{\"window\": 16}}'"
        )
    for name, option in (
        ("policy", "--policies"),
        ("budget", "--budgets"),
        ("keep_ratio", "--budgets"),
    ):
        if name in settings:
            raise SettingsError(f"--settings has {shown(name)}, use {option} instead")
    return settings


def parse_serve_arguments(text: str | None) -> tuple[str, ...]:
    """Arguments of `vllm serve`, split as a shell does. Raises SettingsError for OWN_FLAGS."""
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise SettingsError(f"--serve-args is {shown(text)}: {str(error).lower()}") from None
    for word in words:
        flag = word.partition("=")[0].replace("_", "-").lstrip("-").partition(".")[0]
        if word.startswith("-") and flag in OWN_FLAGS:
            raise SettingsError(f"--serve-args has {shown(word)}, which headkv eval sets itself")
    return tuple(words)


def parse_url(url: str | None) -> str | None:
    """The server's address without `/v1`. Raises SettingsError."""
    if url is not None and not url.startswith(("http://", "https://")):
        raise SettingsError(f"--url is {shown(url)}, expected http://HOST:PORT")
    return None if url is None else url.rstrip("/").removesuffix("/v1")


def parse_dtype(text: str) -> str:
    """A data type by vLLM's name. Raises SettingsError."""
    (dtype,) = parse_names("--dtype", text, DTYPES)[:1]
    return dtype


def parse_folder(option: str, path: Path | None) -> Path | None:
    """A folder that exists. Raises SettingsError."""
    if path is not None and not path.is_dir():
        raise SettingsError(f"{option} is {str(path)!r}, which is not a folder")
    return path


def parse_out(out: Path | None, model: str) -> Path:
    """The folder for results, by default named after the model. Raises SettingsError."""
    path = Path(f"eval-{Path(model).name.lower()}") if out is None else out
    if path.exists() and not path.is_dir():
        raise SettingsError(f"--out is {str(path)!r}, which is not a folder")
    return path


def optional_integer(option: str, value: int | None) -> int | None:
    """An integer from 1, or None. Raises SettingsError."""
    return None if value is None else integer(option, value, minimum=1)


def integer(option: str, text: str | int, *, minimum: int) -> int:
    """An integer from `minimum`. Raises SettingsError."""
    if not str(text).isdecimal() or int(text) < minimum:
        raise SettingsError(f"{option} is {shown(text)}, allowed are integers from {minimum}")
    return int(text)


def _budget(text: str) -> int | float:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    try:
        ratio = float(text) if "." in text else 0.0
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise SettingsError(
            f"--budgets has {shown(text)}, allowed are integers from 1 (tokens per KV head) and "
            "numbers with a point, above 0 and up to 1.0 (part of the prompt)"
        )
    return ratio


def _parts(option: str, text: str, parse: Callable[[str], Value]) -> tuple[Value, ...]:
    """The values between commas, without repetition."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise SettingsError(f"{option} is {shown(text)}, expected values with commas between them")
    return tuple(dict.fromkeys(map(parse, parts)))

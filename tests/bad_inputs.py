# SPDX-License-Identifier: Apache-2.0
"""Bad inputs by generator: every field of what users hand us, with every value that it cannot have.

What a field does allow is said here once more, in `ALLOWED`, and not asked of the code under test.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

VALUES: Final[dict[str, Any]] = {
    "null": None,
    "true": True,
    "false": False,
    "minus one": -1,
    "zero": 0,
    "one and a half": 1.5,
    "minus a half": -0.5,
    "huge": 1e300,
    "not a number": float("nan"),
    "infinity": float("inf"),
    "text": "x",
    "no text": "",
    "list": [],
    "object": {},
}

ALLOWED: Final[dict[str, set[str]]] = {
    # Settings.
    "budget": {"null", "zero"},
    "keep_ratio": {"null"},
    "scores": {"text"},
    "beta": {"one and a half", "huge"},
    "value_norm": {"true", "false"},
    "check_integrity": {"true", "false"},
    "sink": {"zero"},
    "min_budget": {"null"},
    "max_budget": {"null"},
    "compress_every": {"zero"},
    "compress_prefill": {"false"},
    # Arguments of requests.
    "headkv_budget": {"zero"},
    "headkv_compress_every": {"zero"},
    # Score files.
    "model.name": {"text"},
    "model.identity.architecture": {"text"},
    "method": {"text"},
    "provenance.tool_version": {"text"},
    "provenance.seed": {"null", "minus one", "zero", "nothing"},
    "provenance.num_samples": {"null", "nothing"},
    "scores.0.0": {"zero", "one and a half", "huge"},
    # Models.
    "num_key_value_heads": {"null", "nothing"},
    "head_dim": {"null", "nothing"},
    # Bodies of POST plan.
    "plan.budget": {"null", "zero"},
    "plan.keep_ratio": {"null"},
    "plan.policy": {"null"},
    "plan.compress_every": {"null", "zero"},
}


@dataclass(frozen=True)
class BadInput:
    """field: what is wrong in it. kind: how. value: the whole input."""

    field: str
    kind: str
    value: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.kind}"


def bad_settings(names: list[str]) -> list[BadInput]:
    """Mappings for `Settings.parse`, one bad field each."""
    return [
        BadInput(name, kind, {name: value})
        for name in names
        for kind, value in VALUES.items()
        if kind not in ALLOWED.get(name, set())
    ]


def bad_arguments() -> list[BadInput]:
    """A request's `vllm_xargs`."""
    names = ["budget", "keep_ratio", "policy", "compress_every", "none_such"]
    return bad_settings([f"headkv_{name}" for name in names])


def bad_plans() -> list[BadInput]:
    """Bodies of POST plan."""
    return [
        BadInput(f"plan.{name}", kind, {"prompt_tokens": 1000, name: value})
        for name in (
            *("prompt_tokens", "text", "budget", "keep_ratio", "policy", "compress_every"),
            "none_such",
        )
        for kind, value in VALUES.items()
        if kind not in ALLOWED.get(f"plan.{name}", set())
        if (name, kind) != ("text", "null")
    ]


def bad_documents(good: dict[str, Any], paths: list[str]) -> list[BadInput]:
    """`good` with a bad value, or none, at one of `paths`, whose parts are joined by dots."""
    return [
        BadInput(path, kind, document)
        for path in paths
        for kind, document in _changed(good, path)
        if kind not in ALLOWED.get(path, set())
    ]


def _changed(good: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, value in [*VALUES.items(), ("nothing", None)]:
        document: Any = copy.deepcopy(good)
        *keys, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = document
        for key in keys:
            place = place[key]
        if kind == "nothing":
            place.pop(last, None) if isinstance(place, dict) else place.pop(last)
        else:
            place[last] = value
        yield kind, document


def broken_files(good: dict[str, Any]) -> list[BadInput]:
    """Bytes that are no whole JSON document of the right kind."""
    text = json.dumps(good).encode()
    cuts = [text[: len(text) * part // 20] for part in range(20)]
    others = [b"\xff\xfe", b"null", b"[]", b"3", b'"x"', b"[" * 100_000, text + b"}", b"\0" * 64]
    return [BadInput("file", f"bytes {index}", text) for index, text in enumerate(cuts + others)]

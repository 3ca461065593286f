# SPDX-License-Identifier: Apache-2.0
"""Which answers there are, under names that tell all that they depend on."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.kvpress_cells import Ours, Theirs
from benchmarks.kvpress_environment import ROOT
from headkv_vllm.needle.tasks import Sample

CODE: Final = ("*.py", "budgets/*.py", "engine/**/*.py")
"""Of the package, what our answers depend on."""

Answers = dict[tuple[str, str], dict[str, Any]]
"""By run and prompt: `ids`, the answer's tokens; and `kept` of kvpress's, [layer][KV head]."""


def run_name(side: Ours | Theirs, about: dict[str, Any]) -> str:
    """A digest of all that answers depend on but the prompt. about: see `kvpress_parity`."""
    what: dict[str, Any] = {"checkpoint": about["checkpoint"]}
    if isinstance(side, Ours):
        what |= {**side.settings(), "versions": about["versions"], "code": about["code"]}
    else:
        what |= {**side.arguments(), "versions": about["kvpress_versions"]}
    return digest(json.dumps(what, sort_keys=True).encode())[:16]


def prompt_id(sample: Sample, index: int) -> str:
    """Another prompt has another one."""
    return f"{sample.task}-{sample.num_tokens}-{index}-{digest(sample.prompt.encode())[:8]}"


def code_digest() -> str:
    """Of what our answers depend on in the package."""
    package = ROOT / "headkv_vllm"
    files = sorted({file for pattern in CODE for file in package.glob(pattern)})
    return digest(b"".join(file.read_bytes() for file in files))


def checkpoint_digest(folder: Path) -> str:
    """Of the model's weights and configuration."""
    names = ("model.safetensors", "config.json", "tokenizer.json")
    return digest(b"".join((folder / name).read_bytes() for name in names))


def digest(content: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def read_answers(path: Path) -> Answers:
    """All in the file; none where there is none. A last line that was cut short is removed."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return {(one["run"], one["id"]): one for one in map(json.loads, whole.splitlines())}


@contextmanager
def timed(path: Path, key: str) -> Iterator[None]:
    """Add the seconds of the block, even of one that fails, to those noted for `key` in `path`."""
    start = time.monotonic()
    try:
        yield
    finally:
        noted = read_seconds(path)
        noted[key] = noted.get(key, 0) + time.monotonic() - start
        path.write_text(json.dumps(noted))


def read_seconds(path: Path) -> dict[str, float]:
    """What `timed` noted; nothing where there is no file."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def time_key(runs: Iterable[str], number: int) -> str:
    """The name under which the time is noted that `runs` take for `number` prompts of a task."""
    return digest(json.dumps([sorted(runs), number]).encode())[:16]

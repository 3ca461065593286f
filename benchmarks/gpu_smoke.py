# SPDX-License-Identifier: Apache-2.0
"""What works on this GPU? From the driver to engines that answer, each in a process of its own.

`python -m benchmarks.gpu_smoke` prints a line for each check as it ends, then a table of the
engines' answers. Whatever fails or takes too long, the rest goes on. With --out, smoke.json and
smoke.log in that folder hold all of it. `--dry` starts some engines on vLLM's CPU build instead.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any, Final

from benchmarks import gpu_smoke_engines as engines

SECONDS: Final = {"check": 60, "engine": 150}
"""For one process; less where `--limit` leaves less."""


def check_gpu() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_properties(0)
    product = torch.ones(256, 256, device="cuda") @ torch.ones(256, 256, device="cuda")
    assert float(product.sum()) == 256**3
    return {"gpu": device.name, "torch": torch.__version__, "python": sys.version.split()[0]}


def check_extension() -> dict[str, Any]:
    """vLLM's own CUDA code."""
    import torch
    import vllm._C_stable_libtorch  # noqa: F401

    rows = torch.randn(77, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(1024, device="cuda", dtype=torch.bfloat16)
    made = torch.full_like(rows, float("nan"))
    torch.ops._C.rms_norm(made, rows, weight, 1e-6)
    expected = torch.nn.functional.rms_norm(rows.float(), (1024,), weight.float(), 1e-6)
    return close("RMSNorm", made, expected)


def check_flash_attention() -> dict[str, Any]:
    """Two sequences in a paged cache that lies as the plugin's; four query heads to a KV head."""
    import torch
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    found: dict[str, Any] = {}
    new, lengths, num_kv_heads, group = (5, 40), (37, 200), 2, 4
    for size in (64, 128, 32):
        cache = torch.randn(64, num_kv_heads, 16, 2 * size, device="cuda", dtype=torch.bfloat16)
        table = torch.randperm(64, device="cuda", dtype=torch.int32)[:32].view(2, 16)
        query = torch.randn(sum(new), num_kv_heads * group, size, device="cuda").bfloat16()
        keys, values = cache.transpose(1, 2).chunk(2, -1)
        made = flash_attn_varlen_func(
            q=query,
            k=keys,
            v=values,
            cu_seqlens_q=torch.tensor([0, new[0], sum(new)], device="cuda", dtype=torch.int32),
            max_seqlen_q=max(new),
            seqused_k=torch.tensor(lengths, device="cuda", dtype=torch.int32),
            max_seqlen_k=max(lengths),
            causal=True,
            block_table=table,
            fa_version=3,
        )
        for index, (part, length) in enumerate(zip(query.split(new), lengths, strict=True)):
            k, v = (one[table[index].long()].flatten(0, 1)[:length] for one in (keys, values))
            q, k, v = (one.transpose(0, 1).float() for one in (part, k, v))
            mask = torch.ones(len(part), length, device="cuda", dtype=torch.bool)
            expected = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, mask.tril(length - len(part)), enable_gqa=True
            ).transpose(0, 1)
            found |= close(f"head size {size}", made.split(new)[index], expected)
    return found


def close(what: str, made: Any, expected: Any) -> dict[str, Any]:
    error = float((made.float() - expected).norm() / expected.norm())
    assert error < 1e-2, f"{what} is off by {error:.2g}"
    return {f"{what} is off by": float(f"{error:.1e}")}


def check_plugin() -> dict[str, Any]:
    """What vLLM makes of the plugin: its platform, and the backend for each head size."""
    import torch
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.attention.selector import AttentionSelectorConfig

    load_general_plugins()
    found = {"platform": type(current_platform).__name__}
    assert "HeadKV" in found["platform"], f"the plugin is not there: {found}"
    for size in (32, 64, 128):
        asked = AttentionSelectorConfig(size, torch.bfloat16, "auto", 16)
        path = current_platform.get_attn_backend_cls(AttentionBackendEnum["HEADKV"], asked)
        found[f"head size {size}"] = path.rpartition(".")[2]
    return found


CHECKS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "the GPU": check_gpu,
    "vLLM's extension": check_extension,
    "FlashAttention 3": check_flash_attention,
    "the plugin": check_plugin,
}
NEED_A_GPU: Final = ("the GPU", "vLLM's extension", "FlashAttention 3")


def serve_child(name: str, is_dry: bool, path: Path) -> None:
    """In the child: run one check, and write what came of it."""
    try:
        is_check = name in CHECKS
        found = CHECKS[name]() if is_check else engines.run(engines.ENGINES[name], is_dry)
        answer = {"ok": True, "found": found}
    except BaseException as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".strip()
        answer = {"ok": False, "error": text.splitlines()[0][:300]}
    path.write_text(json.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an engine's threads may outlive it


class Run:
    """All checks, their results, and where they are written."""

    def __init__(self, limit: float, is_dry: bool, folder: Path, out: Path | None) -> None:
        self.end, self.is_dry, self.folder, self.out = monotonic() + limit, is_dry, folder, out
        self.results: dict[str, dict[str, Any]] = {}
        self.table: list[str] = []
        self.children: set[subprocess.Popen[bytes]] = set()
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / "smoke.log").unlink(missing_ok=True)

    def run(self, name: str) -> None:
        """In a thread: start the child, wait for it, and report."""
        started = monotonic()
        result = self._result(name, started)
        result["seconds"] = round(monotonic() - started, 1)
        self.results[name] = result
        shown = {k: v for k, v in result.get("found", {}).items() if not isinstance(v, list)}
        text = ", ".join(f"{k} {v}" for k, v in shown.items()) or result.get("error", "")
        sign = "ok  " if result["ok"] else "FAIL"
        print(f"{sign} {result['seconds']:6.1f} s  {name}: {text}", flush=True)
        self.save()

    def _result(self, name: str, started: float) -> dict[str, Any]:
        limit = min(SECONDS["check" if name in CHECKS else "engine"], self.end - started)
        if limit < 5:
            return {"ok": False, "error": "no time was left for it"}
        answer, log = (self.folder / f"{name}.{end}".replace(" ", "-") for end in ("json", "log"))
        command = [sys.executable, "-m", "benchmarks.gpu_smoke", "--child", name]
        command += ["--answer", str(answer), *(["--dry"] if self.is_dry else [])]
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "4"} | os.environ
        if name in engines.ENGINES:
            environment |= engines.ENGINES[name].environment
        with log.open("wb") as file:
            child = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, process_group=0
            )
            self.children.add(child)
            try:
                child.wait(limit)
                failure = f"the process ended with {child.returncode}"
            except subprocess.TimeoutExpired:
                failure = f"not done after {limit:.0f} s"
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            self.children.discard(child)
        text = log.read_text(errors="replace")
        if self.out:
            with (self.out / "smoke.log").open("a") as file:
                file.write(f"\n===== {name} =====\n{text}")
        try:
            result: dict[str, Any] = json.loads(answer.read_text())
        except (OSError, ValueError):
            result = {"ok": False, "error": failure}
        return result if result["ok"] else result | {"log": text[-3000:]}

    def stop(self, *unused: Any) -> None:
        for child in self.children:
            os.killpg(child.pid, signal.SIGKILL)
        self.save()
        os._exit(1)

    def save(self) -> None:
        if self.out:
            content = {"results": dict(self.results), "table": self.table}
            (self.out / "smoke.json").write_text(json.dumps(content, indent=1))

    def compare(self) -> bool:
        """The engines' answers beside each other. Whether all is as it should be."""
        answered = {
            name: self.results[name]["found"]
            for name in engines.ENGINES
            if self.results.get(name, {}).get("ok")
        }
        stock = answered.get(engines.STOCK, {}).get("texts")
        is_good = all(result["ok"] for result in self.results.values())
        for name, found in answered.items():
            is_right, text = engines.verdict(name, found, stock)
            is_good &= is_right
            self.table.append(f"{'good' if is_right else 'BAD '} {name}: {text}")
        print("", *self.table, sep="\n")
        self.save()
        return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=200, help="seconds for all (%(default)s)")
    parser.add_argument("--jobs", type=int, default=7, help="processes at once (%(default)s)")
    parser.add_argument("--only", default="", help="names, or parts of them, with | between")
    parser.add_argument("--list", action="store_true", help="the names of all checks")
    parser.add_argument("--out", type=Path, help="folder for smoke.json and smoke.log")
    parser.add_argument("--dry", action="store_true", help="what can run on vLLM's CPU build")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        serve_child(asked.child, asked.dry, asked.answer)
    names = [name for name in CHECKS if not (asked.dry and name in NEED_A_GPU)]
    names += [name for name, one in engines.ENGINES.items() if one.is_dry or not asked.dry]
    names = [name for name in names if any(part in name for part in asked.only.split("|"))]
    if asked.list:
        print(*names, sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="headkv-smoke-") as temporary:
        run = Run(asked.limit, asked.dry, Path(temporary), asked.out)
        signal.signal(signal.SIGTERM, run.stop)
        signal.signal(signal.SIGINT, run.stop)
        with ThreadPoolExecutor(asked.jobs) as pool:
            for done in [pool.submit(run.run, name) for name in names]:
                done.result()
    return 0 if run.compare() else 1


if __name__ == "__main__":
    sys.exit(main())

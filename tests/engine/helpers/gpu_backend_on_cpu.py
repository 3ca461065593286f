# SPDX-License-Identifier: Apache-2.0
"""An engine on CPUs that serves by a backend for GPUs, whose kernels run in Triton's interpreter.

`python -m tests.engine.helpers.gpu_backend_on_cpu triton v2` is a program of its own, because
Triton must know of its interpreter before anything imports Triton. The engine does what engines on
GPUs do, by vLLM's model runner v1 or v2; see `gpu_runner_on_cpu`. With `flash_attn` in place of
`triton`, a plain stand-in for FlashAttention, which needs a GPU, reads the prompts. With `cpu` the
CPU backend serves, and with `cpu rounded` it rounds entries as an fp8 cache does.
The program reads its questions as JSON from standard input, and writes the answers to the last
line of standard output.
"""

import json
import os
import sys
from dataclasses import replace
from typing import Any

BACKEND, MANNER = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
os.environ |= {"TRITON_INTERPRET": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # which vLLM heeds more than what is asked
from tests.engine.helpers import gpu_runner_on_cpu  # noqa: E402

if BACKEND != "cpu":
    assert MANNER is not None
    gpu_runner_on_cpu.prepare(MANNER)

from vllm import LLM  # noqa: E402
from vllm.v1.attention.backends import fa_utils  # noqa: E402

from benchmarks.harness.rounded_entries import round_what_is_written  # noqa: E402
from headkv_vllm.engine.attention import triton as triton_attention  # noqa: E402
from headkv_vllm.engine.metrics.worker_counts import worker_counts  # noqa: E402
from headkv_vllm.engine.names import FLASH_ATTN_BACKEND_PATH, TRITON_BACKEND_PATH  # noqa: E402
from headkv_vllm.engine.platforms.cpu import HeadKVCpuPlatform  # noqa: E402
from headkv_vllm.engine.platforms.gpu import HeadKVGpuPlatform  # noqa: E402
from headkv_vllm.kernels import reference  # noqa: E402
from tests.engine.helpers import recorded_graph, stepping  # noqa: E402
from tests.engine.helpers.compiled_kernels import CompiledKernels  # noqa: E402
from tests.engine.helpers.flash_attn_plain import flash_attn_varlen_func_plain  # noqa: E402

PATHS = {"triton": TRITON_BACKEND_PATH, "flash_attn": FLASH_ATTN_BACKEND_PATH}

if BACKEND != "cpu":
    HeadKVCpuPlatform.headkv_backend = PATHS[BACKEND]
    limits = HeadKVGpuPlatform.headkv_limits
    HeadKVCpuPlatform.headkv_limits = replace(limits, cache_dtypes=("fp8",))
    fa_utils.flash_attn_varlen_func = flash_attn_varlen_func_plain
    fa_utils.get_flash_attn_version = lambda **_: 3


def answers(llm: LLM, requests: list[Any], num_steps: int) -> list[list[int]]:
    """The tokens of each request, all of which are preempted after `num_steps` steps."""
    for prompt, num_tokens, extra in requests:
        stepping.add(llm, prompt, num_tokens, ignore_eos=True, extra_args=extra)
    for _ in range(num_steps):
        stepping.step(llm)
    if num_steps:
        llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
        assert all(state.num_preemptions == 1 for state in stepping.live(llm).values())
    done = stepping.drain(llm)
    return [done[name].token_ids for name in sorted(done, key=int)]  # by their numbers


def main() -> None:
    asked = json.load(sys.stdin)
    if BACKEND != "cpu":
        gpu_runner_on_cpu.install()
    if MANNER == "rounded":
        round_what_is_written()
    if asked["engine"].get("kv_cache_dtype") == "fp8":
        # Triton's interpreter cuts off where GPUs, and torch, round.
        triton_attention.reshape_and_cache = reference.reshape_and_cache
    compiled = CompiledKernels()
    compiled.install()
    llm = LLM(**asked["engine"], distributed_executor_backend="uni")
    before = set(compiled.variants)
    vllm_config = llm.llm_engine.vllm_config
    batches, num_compressions = [], []
    for batch in asked["batches"]:
        batches.append(answers(llm, *batch))
        num_compressions.append(worker_counts(vllm_config).num_compressions)
    layers = vllm_config.compilation_config.static_forward_context.values()
    found = {
        "impls": sorted({type(layer.impl).__name__ for layer in layers}),
        "cache_dtypes": sorted({str(layer.kv_cache.dtype) for layer in layers}),
        "runner_is_v2": vllm_config.use_v2_model_runner,
        "scheduler": vllm_config.scheduler_config.get_scheduler_cls().__name__,
        "compiled_while_serving": sorted(compiled.variants - before),
        "num_compressions": num_compressions,
        "num_replays": recorded_graph.RecordedGraph.num_replays,
        "answers": batches,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

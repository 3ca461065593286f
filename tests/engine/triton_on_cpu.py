# SPDX-License-Identifier: Apache-2.0
"""An engine on CPUs that serves by the Triton backend, whose kernels run in Triton's interpreter.

A program of its own, `python -m tests.engine.triton_on_cpu triton`, because Triton must be told of
that before anything imports it; with `cpu` in place of `triton` the usual backend serves. Reads
what to ask as JSON from standard input, and writes token ids to the last line of standard output.
"""

import json
import os
import sys
from typing import Any

BACKEND = sys.argv[1]
os.environ |= {"TRITON_INTERPRET": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

from vllm import LLM  # noqa: E402

from headkv_vllm.engine import platform  # noqa: E402
from tests.engine import stepping  # noqa: E402

if BACKEND == "triton":
    platform.BACKEND_PATH = "headkv_vllm.engine.backends.triton.HeadKVTritonBackend"


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
    llm = LLM(**asked["engine"], distributed_executor_backend="uni")
    batches = [answers(llm, *batch) for batch in asked["batches"]]
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    impls = sorted({type(layer.impl).__name__ for layer in layers})
    print(json.dumps({"impls": impls, "answers": batches}))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""An engine on CPUs that serves by the Triton backend, whose kernels run in Triton's interpreter.

A program of its own, `python -m tests.engine.triton_on_cpu triton`, because Triton must be told of
that before anything imports it; with `cpu` in place of `triton` the usual backend serves. Reads
what to ask as JSON from standard input, and writes token ids to the last line of standard output.
"""

import json
import os
import sys

BACKEND = sys.argv[1]
os.environ |= {"TRITON_INTERPRET": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

from vllm import LLM, SamplingParams  # noqa: E402

from headkv_vllm.engine import platform  # noqa: E402

if BACKEND == "triton":
    platform.BACKEND_PATH = "headkv_vllm.engine.backends.triton.HeadKVTritonBackend"


def main() -> None:
    asked = json.load(sys.stdin)
    llm = LLM(**asked["engine"], distributed_executor_backend="uni")
    answers = []
    for batch in asked["batches"]:
        params = [
            SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, extra_args=extra)
            for _, n, extra in batch
        ]
        done = llm.generate([prompt for prompt, *_ in batch], params, use_tqdm=False)
        answers.append([list(output.outputs[0].token_ids) for output in done])
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    print(
        json.dumps(
            {"impls": sorted({type(layer.impl).__name__ for layer in layers}), "answers": answers}
        )
    )


if __name__ == "__main__":
    main()

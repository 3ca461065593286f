# SPDX-License-Identifier: Apache-2.0
"""Our answers, of a real engine: one for each way to run it, in a process of its own."""

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from benchmarks.kvpress_cells import BLOCK_SIZE

CHUNK: Final = 20
"""So many prompts are asked together; their answers are on disk before the next."""

# A server that has imported vLLM forks all engines: importing takes longer than starting.
_CONTEXT = multiprocessing.get_context("forkserver")


def answer(
    model: str,
    settings: dict[str, Any],
    prompts: Sequence[dict[str, Any]],
    run: str,
    answers: Path,
    log: Path,
    on_answers: Callable[[int], None],
) -> None:
    """Append the answers to `prompts` under the name `run` to the file `answers`.

    prompts: each of `id`, `ids` and `max_tokens`. Raises SystemExit when the engine fails; what it
    prints goes to `log`.
    """
    _CONTEXT.set_forkserver_preload(["benchmarks.kvpress_engine", "vllm.entrypoints.llm"])
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    arguments = {**_ENGINE, "model": model, "additional_config": {"headkv": settings}}
    process = _CONTEXT.Process(target=_serve, args=(theirs, arguments, prompts, log))
    process.start()
    theirs.close()
    with suppress(EOFError):
        while True:
            results = ours.recv()
            with answers.open("a") as stream:
                stream.writelines(f"{json.dumps({'run': run, **one})}\n" for one in results)
            on_answers(len(results))
    process.join()
    if process.exitcode:
        raise SystemExit(f"error: the engine ended with {process.exitcode}; see {log}")


_ENGINE: Final[dict[str, Any]] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_batched_tokens": 8192,
    "block_size": BLOCK_SIZE,
    "seed": 0,
    "attention_backend": "HEADKV",
    # Prompts differ from their first words on.
    "enable_prefix_caching": False,
}


def _serve(
    connection: Connection, arguments: dict[str, Any], prompts: list[dict[str, Any]], log: Path
) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    _answer(connection, arguments, prompts)


def _answer(
    connection: Connection, arguments: dict[str, Any], prompts: list[dict[str, Any]]
) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        outputs = llm.generate(
            [{"prompt_token_ids": prompt["ids"]} for prompt in chunk],
            [SamplingParams(temperature=0, max_tokens=p["max_tokens"]) for p in chunk],
            use_tqdm=False,
        )
        end = llm.get_tokenizer().eos_token_id
        connection.send(
            [
                {"id": prompt["id"], "ids": [i for i in output.outputs[0].token_ids if i != end]}
                for prompt, output in zip(chunk, outputs, strict=True)
            ]
        )

# SPDX-License-Identifier: Apache-2.0
"""The servers that are asked: stock vLLM, ours, or one that the user started."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from headkv_vllm.engine.names import FORCED_TOKENS_CLASS
from headkv_vllm.evaluation.asking import served_model
from headkv_vllm.evaluation.cells import GIVEN, Compression
from headkv_vllm.evaluation.request import EvalRequest
from headkv_vllm.evaluation.results import EvaluationError
from headkv_vllm.server.process import ServerError, ServerProcess

START_TIMEOUT: Final = 1800.0
SERVED_NAME: Final = "evaluated"


@dataclass(frozen=True)
class Server:
    """A server, and the compressions that are asked of it.

    Ours serves them all at once: each request brings its own. They share one prefix cache, so a
    prompt is computed once however many of them follow.
    """

    name: Literal["stock", "headkv", "given"]
    compressions: tuple[Compression, ...]

    @property
    def is_ours(self) -> bool:
        return self.name == "headkv"

    def arguments(self, compression: Compression) -> dict[str, Any]:
        """The `vllm_xargs` of a request; other servers know none."""
        return compression.request_arguments() if self.is_ours else {}


def servers_of(request: EvalRequest) -> list[Server]:
    """Those that `request` needs, the uncompressed one first."""
    if request.compressions == (Compression(GIVEN),):
        return [Server("given", request.compressions)]
    stock = [one for one in request.compressions if request.stock and not one.is_compressed]
    ours = [one for one in request.compressions if one not in stock]
    return [
        *([Server("stock", tuple(stock))] if stock else []),
        *([Server("headkv", tuple(ours))] if ours else []),
    ]


@contextmanager
def serving(
    request: EvalRequest,
    server: Server,
    waiting: Callable[[float], None] = lambda elapsed: None,
) -> Iterator[tuple[str, str]]:
    """Address and model name of `server`, which ends with the block.

    With a URL in `request` it is the one there, which goes on. Raises ServerError where none
    starts, and EvaluationError where none answers. What the server prints goes to a file in `out`.
    """
    if request.url is not None:
        yield request.url, served_model(request.url)
        return
    log_path = request.out / f"server-{server.name}.log"
    with ServerProcess(serve_arguments(request, server), log_path) as process:
        try:
            process.wait_until_healthy(START_TIMEOUT, waiting)
        except ServerError as error:
            raise ServerError(f"{server.name}: {error}; see {str(log_path)!r}") from None
        try:
            yield process.url, SERVED_NAME
        except EvaluationError as error:
            if not process.is_running():
                raise EvaluationError(f"the server ended; see {str(log_path)!r}: {error}") from None
            raise


def serve_arguments(request: EvalRequest, server: Server) -> list[str]:
    """What follows `vllm serve` for `server`."""
    arguments = [request.model, "--served-model-name", SERVED_NAME]
    arguments += ["--dtype", request.dtype]
    if request.max_model_len is not None:
        arguments += ["--max-model-len", str(request.max_model_len)]
    if request.tokenizer is not None:
        arguments += ["--tokenizer", request.tokenizer]
    if server.is_ours:
        settings = json.dumps({"headkv": request.server_settings})
        arguments += ["--attention-backend", "headkv", "--additional-config", settings]
        # Stock vLLM keeps its own: its backends do not all take the same ones.
        arguments += ["--block-size", str(request.block_size)]
    if request.question_agnostic:
        arguments += ["--logits-processors", FORCED_TOKENS_CLASS]
    return [*arguments, *request.serve_arguments]

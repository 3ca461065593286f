# SPDX-License-Identifier: Apache-2.0
"""The servers of an evaluation: stock vLLM, ours, or one that the user started."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from headkv_vllm.engine.names import FORCED_TOKENS_CLASS
from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.cells import GIVEN, CellCompression
from headkv_vllm.evaluation.client import served_model
from headkv_vllm.evaluation.request import EvalRequest
from headkv_vllm.server.process import ServerError, ServerProcess

START_TIMEOUT: Final = 1800.0
SERVED_NAME: Final = "evaluated"


@dataclass(frozen=True)
class EvaluatedServer:
    """A server and the compressions that it serves.

    Our server serves all compressions at once: each request brings its own. They share one prefix
    cache, so a prompt is computed once for all of them.
    """

    name: Literal["stock", "headkv", "given"]
    compressions: tuple[CellCompression, ...]

    @property
    def is_ours(self) -> bool:
        return self.name == "headkv"

    def arguments(self, compression: CellCompression) -> dict[str, Any]:
        """The `vllm_xargs` of a request. Servers other than ours get none."""
        return compression.request_arguments() if self.is_ours else {}


def servers_for(request: EvalRequest) -> list[EvaluatedServer]:
    """The servers that `request` needs, the one without compression first."""
    if request.compressions == (CellCompression(GIVEN),):
        return [EvaluatedServer("given", request.compressions)]
    stock = [one for one in request.compressions if request.stock and not one.is_compressed]
    ours = [one for one in request.compressions if one not in stock]
    return [
        *([EvaluatedServer("stock", tuple(stock))] if stock else []),
        *([EvaluatedServer("headkv", tuple(ours))] if ours else []),
    ]


@contextmanager
def serving(
    request: EvalRequest,
    server: EvaluatedServer,
    waiting: Callable[[float], None] = lambda elapsed: None,
) -> Iterator[tuple[str, str]]:
    """Starts `server`, gives its address and model name, and stops it at the end of the block.

    If `request` has a URL, the server there is used and keeps running. Raises ServerError when no
    server starts, and EvaluationError when none answers. The server's output goes to a file in
    the folder `out`.
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


def serve_arguments(request: EvalRequest, server: EvaluatedServer) -> list[str]:
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
        # Stock vLLM keeps its own block size, because its backends allow different sizes.
        arguments += ["--block-size", str(request.block_size)]
    if request.question_agnostic:
        arguments += ["--logits-processors", FORCED_TOKENS_CLASS]
    return [*arguments, *request.serve_arguments]

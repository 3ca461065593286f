# SPDX-License-Identifier: Apache-2.0
"""What vLLM's API server loads through `vllm.endpoint_plugins`, where VLLM_PLUGINS names us."""

from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State

from headkv_vllm.engine.served_model import served_model
from headkv_vllm.server.refusal import Refusal, answer_refusal
from headkv_vllm.server.routes import STATE, open_router, router


class HeadKVEndpoint:
    """vLLM's `EndpointPlugin` with our routes; not for servers that generate nothing."""

    name = "headkv"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes, and how they refuse, to `app`."""
        app.include_router(router)
        app.include_router(open_router)
        app.add_exception_handler(Refusal, answer_refusal)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Note what our routes show. A server with another backend is shown as such."""
        served = served_model(engine_client, args) if engine_client is not None else None
        setattr(state, STATE, served)

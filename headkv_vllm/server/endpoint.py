# SPDX-License-Identifier: Apache-2.0
"""The plugin that vLLM's API server loads from `vllm.endpoint_plugins` if VLLM_PLUGINS names it."""

from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State

from headkv_vllm.engine.served_model import served_model
from headkv_vllm.server.refusal import Refusal, answer_refusal
from headkv_vllm.server.routes import STATE, open_router, router


class HeadKVEndpoint:
    """vLLM's `EndpointPlugin` with our routes, for servers that generate text."""

    name = "headkv"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes and their error handler to `app`."""
        app.include_router(router)
        app.include_router(open_router)
        app.add_exception_handler(Refusal, answer_refusal)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Keep the served model for our routes. It is None if another backend serves."""
        served = served_model(engine_client, args) if engine_client is not None else None
        setattr(state, STATE, served)

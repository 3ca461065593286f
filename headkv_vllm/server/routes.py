# SPDX-License-Identifier: Apache-2.0
"""The routes under /v1/headkv/, which vLLM's API key protects, and the dashboard page."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from headkv_vllm.budgets.plan import Plan
from headkv_vllm.config import Settings
from headkv_vllm.engine.served_model import ServedModel, metrics_registry
from headkv_vllm.errors import RequestError, SettingsError
from headkv_vllm.head_scores.scores import ServedScores
from headkv_vllm.request_overrides import request_settings
from headkv_vllm.server.page import PAGE, PAGE_HEADERS
from headkv_vllm.server.plan_request import PlanRequest, read_plan_request
from headkv_vllm.server.refusal import Refusal, documented
from headkv_vllm.server.shown_config import ShownConfig
from headkv_vllm.server.stats import Stats, read_stats

STATE = "headkv"
"""The name of the `ServedModel` in the app's state. It is None when another backend serves."""

router = APIRouter(prefix="/v1/headkv", tags=["headkv"])
open_router = APIRouter(tags=["headkv"])


def _served(request: Request) -> ServedModel:
    served: ServedModel | None = getattr(request.app.state, STATE, None)
    if served is None:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            "this server does not compress: it was started without --attention-backend headkv",
        )
    return served


Served = Annotated[ServedModel, Depends(_served)]
NOT_FOUND = documented(HTTPStatus.NOT_FOUND)
PLAN_ANSWERS = documented(
    HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE
)
PLAN_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": PlanRequest.model_json_schema()}},
    }
}


@router.get("/config", responses=NOT_FOUND)
async def config(served: Served) -> ShownConfig:
    """The model, and the settings that requests start from."""
    return ShownConfig.from_served(served)


@router.get("/scores", responses=NOT_FOUND)
async def scores(served: Served) -> ServedScores:
    """The score of every KV head, and the source of the scores."""
    return served.scores


@router.post("/plan", responses=PLAN_ANSWERS, openapi_extra=PLAN_BODY)
async def plan(served: Served, request: Request) -> Plan:
    """What every KV head would keep of a prompt, and the memory that this saves.

    The model does not run. The budget may be any budget that a request may ask for.
    """
    plan_request = await read_plan_request(request, served.max_model_len)
    settings = _settings(served, plan_request)
    num_prompt_tokens = await _num_prompt_tokens(served, plan_request)
    return await run_in_threadpool(served.plan, settings, num_prompt_tokens)


@router.get("/stats", responses=NOT_FOUND)
def stats(served: Served) -> Stats:
    """What compression does now, and what it has done since the server started."""
    return read_stats(metrics_registry())


@router.get("/dashboard", response_class=HTMLResponse, responses=documented())
async def dashboard() -> HTMLResponse:
    """A page that shows the scores, plans for any budget, and the KV blocks in use now."""
    return HTMLResponse(PAGE, headers=PAGE_HEADERS)


@open_router.get("/headkv/dashboard", response_class=HTMLResponse)
async def open_dashboard() -> HTMLResponse:
    """The same page for browsers. It has no data and asks the user for the API key."""
    return HTMLResponse(PAGE, headers=PAGE_HEADERS)


def _settings(served: ServedModel, plan_request: PlanRequest) -> Settings:
    """The settings of a request with this budget and policy. Raises Refusal."""
    fields = ("budget", "keep_ratio", "policy", "compress_every")
    given = {name: getattr(plan_request, name) for name in fields}
    arguments = {f"headkv_{name}": value for name, value in given.items() if value is not None}
    try:
        return request_settings(served.settings, arguments)
    except RequestError as error:
        field = error.parameter.rpartition("headkv_")[2]
        message = str(error).replace("headkv_", "")
        raise Refusal(HTTPStatus.BAD_REQUEST, message, field) from None


async def _num_prompt_tokens(served: ServedModel, plan_request: PlanRequest) -> int:
    if plan_request.text is not None:
        try:
            return await served.count_tokens(plan_request.text)
        except SettingsError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error), "text") from None
    assert plan_request.prompt_tokens is not None, "PlanRequest has text or prompt_tokens"
    if plan_request.prompt_tokens > served.max_model_len:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"prompt_tokens is {plan_request.prompt_tokens}, but this server takes at most "
            f"{served.max_model_len} tokens",
            "prompt_tokens",
        )
    return plan_request.prompt_tokens

# SPDX-License-Identifier: Apache-2.0
"""Reads and checks the body of POST plan."""

from http import HTTPStatus
from typing import Any, Final, Self

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headkv_vllm.config import PolicyName
from headkv_vllm.errors import explain, shown
from headkv_vllm.server.refusal import Refusal

BASE_BYTES: Final = 65_536
BYTES_PER_TOKEN: Final = 64
"""The limit of a body is this number times the server's max_model_len, plus `BASE_BYTES`."""

_ONE_OF_BOTH: Final[dict[str, Any]] = {
    "oneOf": [
        {"required": ["prompt_tokens"], "properties": {"prompt_tokens": {"type": "integer"}}},
        {"required": ["text"], "properties": {"text": {"type": "string"}}},
    ]
}


class PlanRequest(BaseModel):
    """A prompt's length or its text, and a budget, as in a request's vllm_xargs.

    The server's settings replace what is left out.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra=_ONE_OF_BOTH,
    )

    prompt_tokens: int | None = Field(
        default=None, ge=1, description="length of the prompt, up to the server's max_model_len"
    )
    text: str | None = Field(
        default=None, min_length=1, description="the prompt, which the server tokenizes"
    )
    budget: int | None = Field(
        default=None, ge=0, description="tokens kept per KV head on average; 0 is off"
    )
    keep_ratio: float | None = Field(
        default=None, gt=0, le=1, description="the budget as a part of the prompt"
    )
    policy: PolicyName | None = Field(default=None, description="how budgets are allocated")
    compress_every: int | None = Field(
        default=None, ge=0, description="tokens between two compressions; 0 is off"
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt_tokens is None) == (self.text is None):
            raise ValueError("give one of prompt_tokens and text, and not both")
        return self


async def read_plan_request(request: Request, max_model_len: int) -> PlanRequest:
    """The body of `request`. Raises Refusal: 413 when it is too long, 400 when it is not valid.

    pydantic parses it, because FastAPI's parser accepts invalid JSON (NaN, lone surrogates).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"content type {shown(media_type)} is not allowed: it must be application/json",
        )
    body = await _read(request, BASE_BYTES + BYTES_PER_TOKEN * max_model_len)
    try:
        return PlanRequest.model_validate_json(body)
    except ValidationError as error:
        location = error.errors()[0]["loc"]
        field = str(location[0]) if location else None
        message = explain(error, PlanRequest, "the body")
        raise Refusal(HTTPStatus.BAD_REQUEST, message, field) from None


async def _read(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is longer than {limit} bytes, which no prompt of this server needs",
            )
    return bytes(body)

# SPDX-License-Identifier: Apache-2.0
"""Error answers of our routes, in OpenAI's form as in vLLM."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

TYPES: Final = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestTooLargeError",
}


class ErrorInfo(BaseModel):
    """message: one line for people. param: the wrong field. code: the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorAnswer(BaseModel):
    """The body of all answers to wrong requests."""

    error: ErrorInfo


class UnauthorizedAnswer(BaseModel):
    """vLLM's answer to a request without the API key."""

    error: str


class Refusal(Exception):
    """Ends a route because the request is wrong."""

    def __init__(self, status: HTTPStatus, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.answer = ErrorAnswer(
            error=ErrorInfo(message=message, type=TYPES[status], param=param, code=status.value)
        )


async def answer_refusal(request: Request, refusal: Exception) -> JSONResponse:
    """FastAPI's handler of `Refusal`."""
    assert isinstance(refusal, Refusal)
    return JSONResponse(refusal.answer.model_dump(), status_code=refusal.status.value)


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may refuse with `statuses`. They always include 401."""
    answers: dict[int | str, dict[str, Any]] = {
        HTTPStatus.UNAUTHORIZED.value: {"model": UnauthorizedAnswer}
    }
    return {**answers, **{status.value: {"model": ErrorAnswer} for status in statuses}}

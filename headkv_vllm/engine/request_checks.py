# SPDX-License-Identifier: Apache-2.0
"""Checks a request's arguments where it arrives: in the API server or in the user's program."""

from collections.abc import Callable

from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams

from headkv_vllm.config import Settings
from headkv_vllm.errors import RequestError, shown
from headkv_vllm.request_overrides import COMPRESS_EVERY, request_settings

_verify_extra_args = getattr(SamplingParams, "_verify_extra_args", None)
"""vLLM's own check of a request's arguments."""


def check_request(
    settings: Settings | None,
    params: SamplingParams | PoolingParams,
    why_not_again: str | None = None,
) -> None:
    """Raises VLLMValidationError, HTTP 400 for the client, if an argument is not allowed.

    settings: the settings of our backend; None if another backend serves.
    why_not_again: why this server cannot compress requests while they generate, if it cannot.
    """
    if settings is None:
        return
    try:
        asked = request_settings(settings, getattr(params, "extra_args", None)).compress_every
        if asked and why_not_again:
            text = f"{COMPRESS_EVERY}={asked} is not allowed: it must be 0, because {why_not_again}"
            raise RequestError(text, COMPRESS_EVERY, asked)
    except RequestError as error:
        raise VLLMValidationError(
            str(error), parameter=error.parameter, value=shown(error.value)
        ) from None


def check_early(check: Callable[[SamplingParams], None]) -> None:
    """Patch: check a request's arguments as soon as vLLM reads them.

    Symptom: a streamed request with a wrong budget gets status 200 and an error in the stream.
    Cause: vLLM validates a request when it is sent to the engine. For a stream this happens at the
    first read, after the headers are sent.
    Guard: the patch needs vLLM's method for checking arguments. Without it only
    `Platform.validate_request` refuses requests.
    It can go when vLLM validates a request before it begins to answer.
    """
    if _verify_extra_args is None:
        return
    verify_stock = _verify_extra_args

    def verify_both(params: SamplingParams) -> None:
        verify_stock(params)
        check(params)

    SamplingParams._verify_extra_args = verify_both  # type: ignore[assignment, method-assign]

# SPDX-License-Identifier: Apache-2.0
"""A request's arguments, checked where it comes in: the API server, or the program that asks."""

from collections.abc import Callable

from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams

from headkv_vllm.config import Settings
from headkv_vllm.errors import RequestError, shown
from headkv_vllm.request_overrides import request_settings

_verify_extra_args = getattr(SamplingParams, "_verify_extra_args", None)
"""vLLM's own check of a request's arguments."""


def check_request(settings: Settings | None, params: SamplingParams | PoolingParams) -> None:
    """settings: those that our backend serves with; None where another one serves.

    Raises VLLMValidationError, which the client gets as 400.
    """
    if settings is None:
        return
    try:
        request_settings(settings, getattr(params, "extra_args", None))
    except RequestError as error:
        raise VLLMValidationError(
            str(error), parameter=error.parameter, value=shown(error.value)
        ) from None


def check_early(served: Callable[[], Settings | None]) -> None:
    """Patch: check a request's arguments as soon as vLLM reads them.

    Symptom: a streamed request with a bad budget is answered with 200, and with an error inside
    the stream.
    Cause: vLLM asks the platform to validate a request when it is sent to the engine, which is
    when the stream is first read, and by then its headers are out.
    Guard: vLLM's own check of the arguments is a method by the name that we know; where it is
    not, `Platform.validate_request` alone refuses.
    It can go when vLLM validates a request before it begins to answer.
    """
    if _verify_extra_args is None:
        return
    verify_stock = _verify_extra_args

    def verify_both(params: SamplingParams) -> None:
        verify_stock(params)
        check_request(served(), params)

    SamplingParams._verify_extra_args = verify_both  # type: ignore[assignment, method-assign]

# SPDX-License-Identifier: Apache-2.0
"""Bad bodies by generator, against the real server: each gets 4xx with a line, and it goes on."""

import json

import httpx
import pytest

from tests.bad_inputs import BadInput, bad_arguments, bad_plans
from tests.server.guarded_server import GuardedServer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

JSON = {"Content-Type": "application/json"}
READ_AS_NUMBERS = {
    ("headkv_budget", "false"),
    ("headkv_keep_ratio", "true"),
    ("headkv_compress_every", "false"),
}
"""By vLLM, before we see them: as 0 and 1, which are allowed."""
COMPLETION = {"model": GuardedServer.model, "prompt": "a b c", "max_tokens": 1}


def test_no_bad_body_harms_the_server(guarded_server: GuardedServer) -> None:
    plan = f"{guarded_server.api}/plan"
    with guarded_server.http as http:
        for bad in bad_plans():
            check(bad, http.post(plan, content=as_json(bad.value), headers=JSON))
        for bad in bad_arguments():
            if (bad.field, bad.kind) in READ_AS_NUMBERS:
                continue
            for stream in (False, True):
                body = {**COMPLETION, "vllm_xargs": bad.value, "stream": stream}
                check(bad, http.post("/v1/completions", content=as_json(body), headers=JSON))
        assert http.get("/health").is_success
        good = http.post("/v1/completions", json=COMPLETION)
    assert good.raise_for_status().json()["choices"]
    log = guarded_server.log()
    assert "Traceback" not in log


def as_json(body: object) -> bytes:
    """Also what is no JSON, NaN and Infinity, as careless clients send it."""
    return json.dumps(body).encode()


def check(bad: BadInput, answer: httpx.Response) -> None:
    """4xx, and an error that says what is wrong."""
    assert 400 <= answer.status_code < 500, (bad, answer.status_code, answer.text)
    error = answer.json()["error"]
    assert error["message"] and "Traceback" not in error["message"], bad

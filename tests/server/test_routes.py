# SPDX-License-Identifier: Apache-2.0
"""The routes under /v1/headkv/ of a real server."""

import json
from argparse import Namespace
from importlib.metadata import entry_points

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from headkv_vllm.budgets.plan import make_plan
from headkv_vllm.config import Settings
from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.scores import load
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import generate_samples
from headkv_vllm.resources import scores_dir
from headkv_vllm.server.plan_request import BASE_BYTES, BYTES_PER_TOKEN
from tests.engine.helpers.server import wait_for
from tests.server.guarded_server import BLOCK_SIZE, KEY, MAX_MODEL_LEN, SETTINGS, GuardedServer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
ROUTES = [
    ("GET", "config"),
    ("GET", "scores"),
    ("GET", "stats"),
    ("GET", "dashboard"),
    ("POST", "plan"),
]
IDENTITY = identify_checkpoint(checkpoint_path())
SCORE_FILE = scores_dir() / "needle.json"


def planned(settings: Settings, num_prompt_tokens: int) -> dict:
    scores = load(SCORE_FILE, settings, IDENTITY).values
    group_size = IDENTITY.num_heads // IDENTITY.num_kv_heads
    sizes = (BLOCK_SIZE, IDENTITY.head_size, 4)
    plan = make_plan(scores, settings, num_prompt_tokens, *sizes, group_size=group_size)
    return json.loads(plan.model_dump_json())


def error(response: httpx.Response, status: int) -> dict:
    """The error of an answer that is one, in OpenAI's form."""
    assert response.status_code == status, response.text
    (found,) = response.json().values()
    assert set(found) == {"message", "type", "param", "code"}
    assert found["code"] == status
    return found


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer another"}])
def test_no_route_answers_without_the_key(
    guarded_server: GuardedServer, method: str, route: str, headers: dict[str, str]
) -> None:
    url = f"{guarded_server.url}{guarded_server.api}/{route}"
    answer = httpx.request(method, url, headers=headers, timeout=60)
    assert answer.status_code == 401
    assert answer.json() == {"error": "Unauthorized"}


def test_the_page_is_the_same_with_and_without_the_key(guarded_server: GuardedServer) -> None:
    with guarded_server.http as http:
        del http.headers["Authorization"]
        open_page = http.get("/headkv/dashboard").raise_for_status()
    with guarded_server.http as http:
        guarded_page = http.get(f"{guarded_server.api}/dashboard").raise_for_status()
    assert open_page.headers["content-type"] == "text/html; charset=utf-8"
    assert open_page.content == guarded_page.content
    policy = open_page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert KEY not in open_page.text and "needle" not in open_page.text


def test_config_tells_what_is_served(guarded_server: GuardedServer) -> None:
    config = guarded_server.get("config")
    assert config["models"] == ["needle"]
    assert config["settings"] == json.loads(SETTINGS.model_dump_json())
    assert (config["num_layers"], config["num_kv_heads"], config["head_size"]) == (4, 4, 32)
    assert (config["block_size"], config["max_model_len"]) == (BLOCK_SIZE, MAX_MODEL_LEN)
    assert config["block_bytes"] == 4 * 4 * BLOCK_SIZE * 2 * 32 * 4
    assert config["num_blocks"] * config["block_bytes"] == 2**30  # VLLM_CPU_KVCACHE_SPACE=1
    names = {policy["name"]: policy for policy in config["policies"]}
    assert names["adakv"] == {"name": "adakv", "uses_scores": False, "adaptive": True}
    assert names["headkv"] == {"name": "headkv", "uses_scores": True, "adaptive": False}


def test_scores_are_those_of_the_file_and_say_so(guarded_server: GuardedServer) -> None:
    shown = guarded_server.get("scores")
    file = read_score_file(SCORE_FILE)
    assert shown["values"] == load(SCORE_FILE, SETTINGS, IDENTITY).values.tolist()
    assert shown["uniform"] is False
    assert (shown["origin"]["file"], shown["origin"]["method"]) == ("needle.json", file.method)
    assert shown["origin"]["provenance"] == json.loads(file.provenance.model_dump_json())
    assert "/" not in shown["source"] + shown["origin"]["file"]


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({}, {}),
        ({"budget": 512}, {"budget": 512}),
        ({"keep_ratio": 0.25}, {"budget": None, "keep_ratio": 0.25}),
        ({"keep_ratio": 1}, {"budget": None, "keep_ratio": 1.0}),
        ({"compress_every": 64}, {"compress_every": 64}),
        ({"policy": "uniform"}, {"policy": "uniform"}),
        ({"policy": "adakv", "budget": 300}, {"policy": "adakv", "budget": 300}),
        ({"budget": 0}, {"budget": 0}),
        ({"budget": 10**30}, {"budget": 10**30}),
    ],
)
@pytest.mark.parametrize("num_prompt_tokens", [1, 1000, MAX_MODEL_LEN])
def test_a_plan_is_that_of_the_command(
    guarded_server: GuardedServer, body: dict, changes: dict, num_prompt_tokens: int
) -> None:
    answer = guarded_server.plan({"prompt_tokens": num_prompt_tokens, **body})
    settings = Settings.parse({**SETTINGS.model_dump(), **changes})
    assert answer.raise_for_status().json() == planned(settings, num_prompt_tokens)


def test_a_text_is_planned_at_its_length_in_tokens(guarded_server: GuardedServer) -> None:
    (sample,) = generate_samples("single", 1500, 1, seed=4)
    answer = guarded_server.plan({"text": sample.prompt, "budget": 64}).raise_for_status()
    assert answer.json() == planned(Settings(budget=64), sample.num_tokens)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, None, "one of prompt_tokens and text"),
        ({"prompt_tokens": 5, "text": "a"}, None, "not both"),
        ({"prompt_tokens": 0}, "prompt_tokens", "greater than or equal to 1"),
        ({"prompt_tokens": MAX_MODEL_LEN + 1}, "prompt_tokens", "at most 4608 tokens"),
        ({"prompt_tokens": 10**400}, "prompt_tokens", ""),
        ({"prompt_tokens": "12"}, "prompt_tokens", "'12'"),
        ({"prompt_tokens": True}, "prompt_tokens", "True"),
        ({"prompt_tokens": 9.5}, "prompt_tokens", "9.5"),
        ({"text": ""}, "text", "at least 1 character"),
        ({"text": "a " * MAX_MODEL_LEN}, "text", "maximum context length is 4608"),
        ({"prompt_tokens": 9, "budget": 5}, "budget", "budget=5 is not allowed"),
        ({"prompt_tokens": 9, "budget": -1}, "budget", "-1"),
        ({"prompt_tokens": 9, "keep_ratio": 0}, "keep_ratio", "greater than 0"),
        ({"prompt_tokens": 9, "keep_ratio": 1.5}, "keep_ratio", "1.5"),
        ({"prompt_tokens": 9, "budget": 64, "keep_ratio": 0.5}, "keep_ratio", "exclude each other"),
        ({"prompt_tokens": 9, "compress_every": 3}, "compress_every", "an integer of at least 8"),
        ({"prompt_tokens": 9, "policy": "best"}, "policy", "'uniform'"),
        ({"prompt_tokens": 9, "windo": 4}, "windo", "allowed are prompt_tokens, text, budget"),
        ([], None, "the body is []"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    guarded_server: GuardedServer, body: object, param: str | None, message: str
) -> None:
    found = error(guarded_server.plan(body), 400)
    assert found["type"] == "BadRequestError"
    assert found["param"] == param
    assert message in found["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"prompt_tokens": NaN}',
        b'{"prompt_tokens": 9, "keep_ratio": Infinity}',
        b'{"prompt_tokens": 9, "keep_ratio": 1e400}',
        b'{"prompt_tokens": ' + b"9" * 5000 + b"}",
        b'{"text": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"\xed\xa0\x80": 1}',
        b"[" * 60_000,
        b'{"text": ' + b'{"text": ' * 5000,
    ],
)
def test_hostile_bodies_are_refused(guarded_server: GuardedServer, body: bytes) -> None:
    with guarded_server.http as http:
        headers = {"Content-Type": "application/json"}
        answer = http.post(f"{guarded_server.api}/plan", content=body, headers=headers)
    assert error(answer, 400)["message"]
    assert httpx.get(f"{guarded_server.url}/health", timeout=60).is_success


@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data; boundary=x"])
def test_other_content_types_are_refused(
    guarded_server: GuardedServer, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    with guarded_server.http as http:
        body = b'{"prompt_tokens": 9}'
        answer = http.post(f"{guarded_server.api}/plan", content=body, headers=headers)
    assert "application/json" in error(answer, 400)["message"]


def test_a_body_that_is_too_long_is_refused(guarded_server: GuardedServer) -> None:
    limit = BASE_BYTES + BYTES_PER_TOKEN * MAX_MODEL_LEN
    answer = guarded_server.plan({"text": "a" * limit})
    assert str(limit) in error(answer, 413)["message"]


def test_stats_count_what_a_request_does(guarded_server: GuardedServer) -> None:
    before = guarded_server.get("stats")
    (sample,) = generate_samples("single", 2000, 1, seed=9)
    ask = {"model": "needle", "max_tokens": 8, "temperature": 0}
    guarded_server.client.completions.create(prompt=sample.prompt, **ask)
    guarded_server.client.completions.create(prompt="a", **ask)
    # The last numbers of a request may come after its answer.
    wait_for(lambda: guarded_server.get("stats")["blocks_in_use"] == 0)
    after = guarded_server.get("stats")
    plan = planned(SETTINGS, sample.num_tokens)
    assert after["compressed_requests"] - before["compressed_requests"] == 1
    assert after["prompt_tokens"] - before["prompt_tokens"] == sample.num_tokens
    assert after["kept_tokens"] - before["kept_tokens"] == round(plan["mean_kept_tokens"])
    assert after["freed_blocks"] - before["freed_blocks"] == plan["num_full_blocks"]
    assert after["compression"]["number"] - before["compression"]["number"] == 1
    assert after["compressions"]["prompt"] - before["compressions"].get("prompt", 0) == 1
    assert after["compression"]["seconds"] > before["compression"]["seconds"]
    skipped = "skipped_requests"
    assert after[skipped]["too_short"] - before[skipped]["too_short"] == 1
    assert after["time"] > before["time"]


def test_stats_are_the_numbers_of_the_metrics(guarded_server: GuardedServer) -> None:
    wait_for(lambda: guarded_server.get("stats")["blocks_in_use"] == 0)
    text = httpx.get(f"{guarded_server.url}/metrics", timeout=60).raise_for_status().text
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    shown = guarded_server.get("stats")

    def total(name: str) -> float:
        return sum(sample.value for sample in samples if sample.name == f"headkv:{name}")

    for name in ("compressed_requests", "prompt_tokens", "kept_tokens", "freed_blocks"):
        assert shown[name] == total(f"{name}_total") > 0
    for name in ("blocks_in_use", "stock_blocks", "head_blocks_in_use"):
        assert shown[name] == total(name) == 0
    assert sum(shown["skipped_requests"].values()) == total("skipped_requests_total")
    assert shown["compression"]["seconds"] == total("compression_seconds_sum")
    assert shown["allocation_cache"] == {
        "hits": total("allocation_cache_hits_total"),
        "misses": total("allocation_cache_misses_total"),
        "size": total("allocation_cache_size"),
    }


def test_openapi_documents_every_route(guarded_server: GuardedServer) -> None:
    # vLLM makes it of its own routes too at the first call, which takes seconds.
    schema = httpx.get(f"{guarded_server.url}/openapi.json", timeout=120).raise_for_status().json()
    for method, route in ROUTES:
        operation = schema["paths"][f"{guarded_server.api}/{route}"][method.lower()]
        assert operation["description"] and {"200", "401"} <= set(operation["responses"])
    plan = schema["paths"][f"{guarded_server.api}/plan"]["post"]
    (body,) = plan["requestBody"]["content"].values()
    assert set(body["schema"]["properties"]) == {
        "prompt_tokens", "text", "budget", "keep_ratio", "policy", "compress_every"
    }  # fmt: skip
    assert {"ServedScores", "ShownConfig", "Plan", "Stats"} <= set(schema["components"]["schemas"])


def test_vllm_loads_the_routes_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.plugins import load_endpoint_plugins

    assert "headkv" in {point.name for point in entry_points(group="vllm.endpoint_plugins")}
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert load_endpoint_plugins(("generate",)) == []
    monkeypatch.setenv("VLLM_PLUGINS", "headkv")
    assert "headkv" in [plugin.name for plugin in load_endpoint_plugins(("generate",))]
    assert load_endpoint_plugins(("embed",)) == []


async def _without_engine(app: FastAPI) -> None:
    from headkv_vllm.server.endpoint import HeadKVEndpoint

    endpoint = HeadKVEndpoint()
    endpoint.attach_router(app)
    await endpoint.init_state(None, app.state, Namespace())


def test_a_server_that_does_not_compress_says_so() -> None:
    import asyncio

    app = FastAPI()
    asyncio.run(_without_engine(app))
    client = TestClient(app)
    for method, route in ROUTES:
        if route != "dashboard":
            answer = client.request(method, f"/v1/headkv/{route}")
            assert "--attention-backend headkv" in error(answer, 404)["message"]

# SPDX-License-Identifier: Apache-2.0
"""The needle model behind vLLM's own server, asked by the official client."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import exp
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import headkv_vllm
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.grading import grade
from headkv_vllm.needle.tasks import NeedleSample, NeedleTaskName, generate_samples
from headkv_vllm.needle.vocabulary import EOS
from headkv_vllm.resources import scores_dir
from tests.engine.helpers.server import Server, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SETTINGS = {"budget": 128, "pooling": "max", "kernel_size": 7}
BLOCK_SIZE = 16
MAX_MODEL_LEN = 8192
NUM_TOKENS = 1024
ARGUMENTS = [
    *("--attention-backend", "headkv", "--additional-config", json.dumps({"headkv": SETTINGS})),
    *("--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK_SIZE)),
    *("--max-model-len", str(MAX_MODEL_LEN)),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(checkpoint_path(), *ARGUMENTS) as running:
        yield running


@cache
def samples(task: NeedleTaskName = "multi-key", n: int = 12) -> list[NeedleSample]:
    return list(generate_samples(task, NUM_TOKENS, n, seed=3))


def complete(server: Server, prompt: str, **parameters: Any) -> Any:
    """Greedy, as long as the longest answer."""
    chosen: dict[str, Any] = {"temperature": 0, "max_tokens": 32, **parameters}
    return server.client.completions.create(model=server.model, prompt=prompt, **chosen)


def answer(server: Server, prompt: str) -> str:
    return str(complete(server, prompt).choices[0].text)


def part_right(asked: list[NeedleSample], texts: list[str]) -> float:
    grades = [grade(s.answer, text) for s, text in zip(asked, texts, strict=True)]
    return sum(g.questions_right for g in grades) / sum(g.questions for g in grades)


@pytest.mark.parametrize("task", ["multi-key", "multi-query"])
def test_answers_from_an_eighth_of_the_prompt(server: Server, task: NeedleTaskName) -> None:
    asked = samples(task)
    assert part_right(asked, [answer(server, sample.prompt) for sample in asked]) >= 0.9


def test_the_bundled_scores_are_found(server: Server) -> None:
    assert f"scores of needle, needle.json ({scores_dir() / 'needle.json'})" in server.log()


def test_streams_the_same_answer(server: Server) -> None:
    prompt = samples()[0].prompt
    chunks = list(complete(server, prompt, stream=True))
    assert len(chunks) > 4
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer(server, prompt)


def test_chat_gives_the_same_answers(server: Server) -> None:
    for sample in samples()[:3]:
        chat = server.client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": sample.prompt}],
            temperature=0,
            max_tokens=32,
        )
        assert chat.usage is not None and chat.usage.prompt_tokens == NUM_TOKENS
        assert (chat.choices[0].message.content or "").strip() == (
            answer(server, sample.prompt).strip()
        )


def test_concurrent_requests_get_their_own_answers(server: Server) -> None:
    asked = [*samples(), *samples("multi-query")]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda sample: answer(server, sample.prompt), asked))
    assert together == [answer(server, sample.prompt) for sample in asked]
    assert len(set(together)) == len(asked)


def test_two_samples_of_one_prompt(server: Server) -> None:
    sample = samples()[0]
    completion = complete(server, sample.prompt, n=2, temperature=0.05, seed=1)
    texts = [choice.text for choice in completion.choices]
    assert part_right([sample, sample], texts) == 1


def test_logprobs(server: Server) -> None:
    choice = complete(server, samples()[0].prompt, logprobs=3).choices[0]
    found = choice.logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs
    assert found.tokens == [*choice.text.split(), EOS]
    for logprob, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert logprob == max(top.values()) <= 0
        assert sum(map(exp, top.values())) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"prompt": "river " * (MAX_MODEL_LEN + 1)}, 400),
        ({"prompt": []}, 400),
        ({"max_tokens": -1}, 400),
        ({"temperature": -1}, 400),
        ({"n": "two"}, 400),
        ({"model": "none"}, 404),
    ],
    ids=["too long", "empty", "max_tokens", "temperature", "n", "model"],
)
def test_a_bad_request_is_refused_and_the_next_is_served(
    server: Server, changes: dict[str, object], status: int
) -> None:
    body = {"model": server.model, "prompt": "the river", "max_tokens": 4, **changes}
    refused = httpx.post(f"{server.url}/v1/completions", json=body)
    assert refused.status_code == status
    assert refused.json()["error"]["message"]
    assert complete(server, "the river", max_tokens=4).choices[0].text


def test_malformed_json_is_refused(server: Server) -> None:
    headers = {"content-type": "application/json"}
    refused = httpx.post(f"{server.url}/v1/completions", content=b'{"model": ', headers=headers)
    assert refused.status_code == 400
    with pytest.raises(openai.BadRequestError):
        server.client.completions.create(model=server.model, prompt="the", max_tokens=-1)


def test_metrics_count_what_was_asked(server: Server) -> None:
    prompts = server.metric("vllm:prompt_tokens_total")
    generated = server.metric("vllm:generation_tokens_total")
    usage = complete(server, samples()[0].prompt, max_tokens=5).usage
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (NUM_TOKENS, 5)
    wait_for(lambda: num_generated(server, generated) == 5)
    assert server.metric("vllm:prompt_tokens_total") == prompts + NUM_TOKENS


def test_a_client_that_goes_away_gives_its_blocks_back(server: Server) -> None:
    before = server.metric("vllm:generation_tokens_total")
    server.abandon(samples()[0].prompt, max_tokens=7000)
    wait_for(lambda: server.num_held_blocks() == 0)
    assert server.metric("vllm:num_requests_running") == 0
    assert 0 < num_generated(server, before) < 7000


def num_generated(server: Server, before: float) -> float:
    return server.metric("vllm:generation_tokens_total") - before


def test_sigterm_ends_all_its_processes(server: Server) -> None:
    """The last test of this file: it ends the server."""
    assert server.stop() == 0
    wait_for(lambda: not server.has_processes())
    # vLLM's own processes may report that they lost each other; nothing goes wrong in ours.
    assert f'File "{Path(headkv_vllm.__file__).parent}' not in server.log()

# SPDX-License-Identifier: Apache-2.0
"""The client sends prompts over HTTP, reads answers, and reports failures."""

from typing import Any

import pytest

from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.client import CompletionClient, CompletionRequest, served_model
from headkv_vllm.evaluation.prompts import Prompt
from headkv_vllm.evaluation.samples import Sample
from tests.evaluation.answering import answering, completion


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, token_ids))


def asking(name: str = "0", **arguments: Any) -> CompletionRequest:
    """Its context is "text NAME", its question "?"."""
    text = f"text {name}?"
    sample = Sample(name, "a task", text[:-1], "?", ("answer",), 8, 0)
    return CompletionRequest(Prompt(sample, tuple(map(ord, text)), len(text) - 1), arguments)


def ask(url: str, requests: list[CompletionRequest], **options: Any) -> dict[int, Any]:
    answers: dict[int, Any] = {}
    CompletionClient(url, "m", Letters(), **options).complete_all(requests, answers.__setitem__)
    return answers


def test_all_are_asked_greedily_and_no_more_at_a_time_than_allowed() -> None:
    requests = [asking(str(i)) for i in range(9)]
    with answering(lambda body: completion(Letters().decode(body["prompt"]).upper())) as server:
        answers = ask(server.url, requests, concurrency=3)
    assert sorted(answers) == list(range(9))
    for index, answer in answers.items():
        assert answer.text == f"TEXT {index}?"
        assert (answer.num_prompt_tokens, answer.num_output_tokens) == (11, 7)
    assert 1 < server.most_at_a_time <= 3
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 8)
        assert not {"vllm_xargs", "return_token_ids"} & set(body)


def test_each_request_brings_its_own_compression() -> None:
    requests = [asking("0", headkv_budget=64), asking("0", headkv_keep_ratio=0.5)]
    with answering(lambda _: completion("")) as server:
        ask(server.url, requests, concurrency=1)
    assert [body["vllm_xargs"] for body in server.bodies] == [one.arguments for one in requests]
    assert server.bodies[0]["prompt"] == server.bodies[1]["prompt"]


def test_the_question_is_forced_and_cut_from_the_answer() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        forced = body["vllm_xargs"]["headkv_forced_tokens"]
        return completion("all", token_ids=[*forced, *map(ord, "free")])

    with answering(reply) as server:
        (answer,) = ask(server.url, [asking(headkv_budget=64)], question_agnostic=True).values()
    (body,) = server.bodies
    assert Letters().decode(body["prompt"]) == "text 0"
    assert body["vllm_xargs"] == {"headkv_budget": 64, "headkv_forced_tokens": [ord("?")]}
    assert body["max_tokens"] == 1 + 8
    assert (answer.text, answer.num_forced_tokens, answer.num_output_tokens) == ("free", 1, 7 - 1)


@pytest.mark.parametrize("choice", [{}, {"token_ids": None}, {"token_ids": [1, 2, 3]}])
def test_a_server_that_does_not_force_is_noticed(choice: dict[str, Any]) -> None:
    with (
        answering(lambda _: completion("all", **choice)) as server,
        pytest.raises(EvaluationError, match="--logits-processors"),
    ):
        ask(server.url, [asking()], question_agnostic=True)


def test_the_first_refusal_ends_it_in_one_line_and_is_not_asked_again() -> None:
    refusal = {"error": {"message": "too\nlong", "type": "BadRequestError", "code": 400}}
    with (
        answering(lambda _: (400, refusal)) as server,
        pytest.raises(EvaluationError, match=r"sample '0' of a task got no answer .*: too long$"),
    ):
        ask(server.url, [asking()])
    assert len(server.bodies) == 1


def test_what_keeping_an_answer_raises_comes_through() -> None:
    def full(index: int, answer: object) -> None:
        raise EvaluationError("no space")

    with (
        answering(lambda _: completion("")) as server,
        pytest.raises(EvaluationError, match="no space"),
    ):
        CompletionClient(server.url, "m", Letters(), 2).complete_all(
            [asking(str(i)) for i in range(4)], full
        )


def test_nothing_to_ask_asks_nothing() -> None:
    assert ask("http://127.0.0.1:1", []) == {}


def test_the_model_is_the_one_that_is_served() -> None:
    with answering(lambda _: completion("")) as server:
        assert served_model(server.url) == "served"
    with pytest.raises(EvaluationError, match="no server answers at") as raised:
        served_model(server.url)
    assert "\n" not in str(raised.value)

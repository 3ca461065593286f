# SPDX-License-Identifier: Apache-2.0
"""Asking a server over HTTP: what is sent, what is made of the answers, how failures look."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.evaluation.asking import (
    Asker,
    question_agnostic_prompt,
    served_model,
    whole_prompt,
)
from headkv_vllm.evaluation.results import EvaluationError
from headkv_vllm.evaluation.samples import Sample
from tests.evaluation.answering import answering, completion


class Pairs:
    """A tokenizer whose tokens are pairs of characters, after a first one that is always 1."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        pairs = [text[i : i + 2].encode("utf-32-le") for i in range(0, len(text), 2)]
        return [1, *(2 + int.from_bytes(pair, "little") for pair in pairs)]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        pairs = ((token_id - 2).to_bytes(8, "little") for token_id in token_ids if token_id != 1)
        return "".join(pair.decode("utf-32-le") for pair in pairs).replace("\0", "")


def sample(name: str = "0", context: str = "context", question: str = " question") -> Sample:
    return Sample(name, "a task", context, question, ("answer",), 8, 0)


@given(context=st.text(st.characters(min_codepoint=32, max_codepoint=126)), question=st.text())
def test_a_question_agnostic_prompt_holds_none_of_the_question(context: str, question: str) -> None:
    tokenizer = Pairs()
    made = question_agnostic_prompt(sample(context=context, question=question), tokenizer)
    assert isinstance(made.prompt, list)
    assert [*made.prompt, *made.forced] == tokenizer.encode(context + question)
    assert made.prompt == tokenizer.encode(context)[: len(made.prompt)]
    assert len(tokenizer.encode(context)) - len(made.prompt) <= 1
    assert whole_prompt(made.sample).prompt == context + question


def ask(url: str, samples: list[Sample], **options: Any) -> dict[int, Any]:
    answers: dict[int, Any] = {}
    Asker(url, "m", Pairs(), **options).ask_all(samples, answers.__setitem__)
    return answers


def test_all_are_asked_greedily_and_no_more_at_a_time_than_allowed() -> None:
    samples = [sample(str(i), context=f"context {i}") for i in range(9)]
    with answering(lambda body: completion(body["prompt"].upper())) as server:
        answers = ask(server.url, samples, concurrency=3)
    assert sorted(answers) == list(range(9))
    for index, answer in answers.items():
        assert answer.sample is samples[index]
        assert answer.text == samples[index].prompt.upper()
        assert (answer.num_prompt_tokens, answer.num_output_tokens) == (11, 7)
    assert 1 < server.most_at_a_time <= 3
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 8)
        assert not {"vllm_xargs", "return_token_ids"} & set(body)


def test_the_question_is_forced_and_cut_from_the_answer() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        forced = body["vllm_xargs"]["headkv_forced_tokens"]
        return completion("all", token_ids=[*forced, *Pairs().encode("free")[1:]])

    asked = sample(context="contexts", question=" ask")  # four pairs, and two
    with answering(reply) as server:
        (answer,) = ask(server.url, [asked], question_agnostic=True).values()
    assert server.bodies[0]["prompt"] == Pairs().encode("contexts")
    assert server.bodies[0]["max_tokens"] == 2 + 8
    assert (answer.text, answer.num_forced_tokens, answer.num_output_tokens) == ("free", 2, 7 - 2)


@pytest.mark.parametrize("choice", [{}, {"token_ids": None}, {"token_ids": [1, 2, 3]}])
def test_a_server_that_does_not_force_is_noticed(choice: dict[str, Any]) -> None:
    with (
        answering(lambda _: completion("all", **choice)) as server,
        pytest.raises(EvaluationError, match="--logits-processors"),
    ):
        ask(server.url, [sample()], question_agnostic=True)


def test_the_first_refusal_ends_it_in_one_line_and_is_not_asked_again() -> None:
    refusal = {"error": {"message": "too\nlong", "type": "BadRequestError", "code": 400}}
    with (
        answering(lambda _: (400, refusal)) as server,
        pytest.raises(EvaluationError, match=r"sample '0' of a task got no answer .*: too long$"),
    ):
        ask(server.url, [sample()])
    assert len(server.bodies) == 1


def test_what_keeping_an_answer_raises_comes_through() -> None:
    def full(index: int, answer: object) -> None:
        raise EvaluationError("no space")

    with (
        answering(lambda _: completion("")) as server,
        pytest.raises(EvaluationError, match="no space"),
    ):
        Asker(server.url, "m", Pairs(), 2).ask_all([sample(str(i)) for i in range(4)], full)


def test_nothing_to_ask_asks_nothing() -> None:
    assert ask("http://127.0.0.1:1", []) == {}


def test_the_model_is_the_one_that_is_served() -> None:
    with answering(lambda _: completion("")) as server:
        assert served_model(server.url) == "served"
    with pytest.raises(EvaluationError, match="no server answers at") as raised:
        served_model(server.url)
    assert "\n" not in str(raised.value)

# SPDX-License-Identifier: Apache-2.0
"""A client of an OpenAI-compatible server that sends several prompts at a time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import openai
from openai.types import Completion

from headkv_vllm.engine.names import FORCED_TOKENS_CLASS
from headkv_vllm.errors import EvaluationError, shown
from headkv_vllm.evaluation.prompts import Prompt
from headkv_vllm.evaluation.samples import Tokenizer
from headkv_vllm.request_overrides import FORCED_TOKENS

TIMEOUT: Final = 3600.0
"""Seconds for one answer, including the wait in the server's queue."""


@dataclass(frozen=True)
class Answer:
    """The server's answer. text and num_output_tokens do not include the forced tokens."""

    text: str
    num_prompt_tokens: int
    num_output_tokens: int
    num_forced_tokens: int = 0


@dataclass(frozen=True)
class CompletionRequest:
    """One request. arguments: its `vllm_xargs`, which say how the server compresses the prompt."""

    prompt: Prompt
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompletionClient:
    """Gets greedy completions of `model` from the server at `url` (without `/v1`).

    question_agnostic: the prompt is the context alone, and the question follows as forced output.
    """

    url: str
    model: str
    tokenizer: Tokenizer
    concurrency: int = 8
    question_agnostic: bool = False

    def complete_all(
        self, requests: Sequence[CompletionRequest], on_answer: Callable[[int, Answer], None]
    ) -> None:
        """Send all requests in their order. `on_answer` gets the index and the answer of each.

        Answers can arrive in another order. Raises EvaluationError for the first request that
        fails, and what `on_answer` raises; unfinished requests are then cancelled.
        """
        asyncio.run(self._ask_all(requests, on_answer))

    async def _ask_all(
        self, requests: Sequence[CompletionRequest], on_answer: Callable[[int, Answer], None]
    ) -> None:
        waiting = iter(enumerate(requests))
        client = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", timeout=TIMEOUT, max_retries=0
        )

        async def work() -> None:
            for index, request in waiting:
                on_answer(index, await self._complete(client, request))

        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(requests))):
                        group.create_task(work())
            except* Exception as failures:
                raise _first(failures) from None

    async def _complete(self, client: openai.AsyncOpenAI, request: CompletionRequest) -> Answer:
        prompt = request.prompt
        forced = prompt.question if self.question_agnostic else ()
        try:
            completion = await client.completions.create(
                model=self.model,
                prompt=list(prompt.context if self.question_agnostic else prompt.ids),
                max_tokens=len(forced) + prompt.sample.max_new_tokens,
                temperature=0,
                extra_body=_extra(forced, request.arguments),
            )
        except openai.OpenAIError as error:
            raise EvaluationError(_refusal(self.url, prompt, error)) from None
        return self._answer(prompt, forced, completion)

    def _answer(self, prompt: Prompt, forced: tuple[int, ...], completion: Completion) -> Answer:
        usage, choice = completion.usage, completion.choices[0]
        if usage is None:
            raise EvaluationError(f"the server at {self.url} sends no token counts (usage)")
        text = choice.text
        if forced:
            token_ids = getattr(choice, "token_ids", None) or []
            text = self._text_after_forced(prompt, forced, token_ids)
        num_output_tokens = usage.completion_tokens - len(forced)
        return Answer(text, usage.prompt_tokens, num_output_tokens, len(forced))

    def _text_after_forced(
        self, prompt: Prompt, forced: tuple[int, ...], token_ids: list[int]
    ) -> str:
        """The output after the forced tokens. Raises EvaluationError if it lacks these tokens."""
        if tuple(token_ids[: len(forced)]) != forced:
            raise EvaluationError(
                f"the server at {self.url} did not write the question of sample "
                f"{shown(prompt.sample.id)} first: --question-agnostic needs vllm serve "
                f"--logits-processors {FORCED_TOKENS_CLASS}"
            )
        return str(self.tokenizer.decode(token_ids[len(forced) :], skip_special_tokens=True))


def served_model(url: str) -> str:
    """The first model that the server at `url` serves. Raises EvaluationError."""
    try:
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", timeout=30, max_retries=0
        ) as client:
            models = client.models.list().data
    except openai.OpenAIError as error:
        raise EvaluationError(f"no server answers at {url}: {_one_line(error)}") from None
    if not models:
        raise EvaluationError(f"the server at {url} serves no model")
    return models[0].id


def _extra(forced: tuple[int, ...], arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """vLLM's additions to the request body. None if they are not needed: other servers do not
    know them."""
    if forced:
        arguments = {**arguments, FORCED_TOKENS: list(forced)}
    ids = {"return_token_ids": True} if forced else {}
    return {**ids, "vllm_xargs": arguments} if arguments else None


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _refusal(url: str, prompt: Prompt, error: openai.OpenAIError) -> str:
    sample = prompt.sample
    return (
        f"sample {shown(sample.id)} of {sample.task} got no answer from {url}: {_one_line(error)}"
    )


def _one_line(error: Exception, limit: int = 300) -> str:
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    text = " ".join(str(message or error).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."

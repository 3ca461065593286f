# SPDX-License-Identifier: Apache-2.0
"""Asks an OpenAI-compatible server for the answers to samples, several at a time."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openai
from openai.types import Completion

from headkv_vllm.engine.names import FORCED_TOKENS_CLASS, FORCED_TOKENS_KEY
from headkv_vllm.errors import shown
from headkv_vllm.evaluation.results import EvaluationError
from headkv_vllm.evaluation.samples import Sample, Tokenizer

TIMEOUT: Final = 3600.0
"""Seconds for one answer, waiting in the server's queue included."""


@dataclass(frozen=True)
class Prompt:
    """What is sent for a sample: text, or token ids when the question comes as forced output."""

    sample: Sample
    prompt: str | list[int]
    forced: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the server said. text and num_output_tokens are without what was forced."""

    sample: Sample
    text: str
    num_prompt_tokens: int
    num_output_tokens: int
    num_forced_tokens: int = 0


def whole_prompt(sample: Sample) -> Prompt:
    """Context and question as one text."""
    return Prompt(sample, sample.prompt)


def question_agnostic_prompt(sample: Sample, tokenizer: Tokenizer) -> Prompt:
    """The context's tokens as the prompt, and those of the question as forced output.

    Together they are the tokens of the whole prompt. Where the last token of the context would
    merge with the question's first, it is the question's: no prompt holds any of the question.
    """
    whole, context = tokenizer.encode(sample.prompt), tokenizer.encode(sample.context)
    common = 0
    for one, other in zip(whole, context, strict=False):
        if one != other:
            break
        common += 1
    return Prompt(sample, whole[:common], tuple(whole[common:]))


@dataclass(frozen=True)
class Asker:
    """Asks the server at `url` (without `/v1`) for greedy completions of `model`."""

    url: str
    model: str
    tokenizer: Tokenizer
    concurrency: int = 8
    question_agnostic: bool = False

    def ask_all(self, samples: Sequence[Sample], on_answer: Callable[[int, Answer], None]) -> None:
        """Ask all; `on_answer` is called with the sample's index and each answer as it comes.

        Raises EvaluationError at the first sample that is not answered; answers that were under way
        are dropped. Whatever `on_answer` raises ends it too.
        """
        asyncio.run(self._ask_all(samples, on_answer))

    async def _ask_all(
        self, samples: Sequence[Sample], on_answer: Callable[[int, Answer], None]
    ) -> None:
        waiting = iter(enumerate(samples))
        client = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", timeout=TIMEOUT, max_retries=0
        )

        async def work() -> None:
            for index, sample in waiting:
                on_answer(index, await self._ask(client, sample))

        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(samples))):
                        group.create_task(work())
            except* Exception as failures:
                raise _first(failures) from None

    async def _ask(self, client: openai.AsyncOpenAI, sample: Sample) -> Answer:
        agnostic = self.question_agnostic
        prompt = (
            question_agnostic_prompt(sample, self.tokenizer) if agnostic else whole_prompt(sample)
        )
        try:
            completion = await client.completions.create(
                model=self.model,
                prompt=prompt.prompt,
                max_tokens=len(prompt.forced) + sample.max_new_tokens,
                temperature=0,
                extra_body=_extra(prompt),
            )
        except openai.OpenAIError as error:
            raise EvaluationError(_refusal(self.url, sample, error)) from None
        return self._answer(prompt, completion)

    def _answer(self, prompt: Prompt, completion: Completion) -> Answer:
        usage, choice = completion.usage, completion.choices[0]
        if usage is None:
            raise EvaluationError(f"the server at {self.url} does not say how many tokens it read")
        text = choice.text
        if prompt.forced:
            text = self._text_after_forced(prompt, getattr(choice, "token_ids", None) or [])
        return Answer(
            prompt.sample,
            text,
            usage.prompt_tokens,
            usage.completion_tokens - len(prompt.forced),
            len(prompt.forced),
        )

    def _text_after_forced(self, prompt: Prompt, token_ids: list[int]) -> str:
        """The free part of the output, once its beginning is seen to be what was to be forced."""
        number = len(prompt.forced)
        if tuple(token_ids[:number]) != prompt.forced:
            raise EvaluationError(
                f"the server at {self.url} did not write the question of sample "
                f"{shown(prompt.sample.id)} as told: --question-agnostic needs vllm serve "
                f"--logits-processors {FORCED_TOKENS_CLASS}"
            )
        return str(self.tokenizer.decode(token_ids[number:], skip_special_tokens=True))


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


def _extra(prompt: Prompt) -> dict[str, Any] | None:
    """vLLM's additions to the request: none that another server would not know, unless needed."""
    if not prompt.forced:
        return None
    return {"return_token_ids": True, "vllm_xargs": {FORCED_TOKENS_KEY: list(prompt.forced)}}


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _refusal(url: str, sample: Sample, error: openai.OpenAIError) -> str:
    return (
        f"sample {shown(sample.id)} of {sample.task} got no answer from {url}: {_one_line(error)}"
    )


def _one_line(error: Exception, limit: int = 300) -> str:
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    text = " ".join(str(message or error).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."

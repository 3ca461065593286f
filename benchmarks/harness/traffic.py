# SPDX-License-Identifier: Apache-2.0
"""Sends requests of all kinds at once, and compares each answer with that of the request alone."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from openai import APITimeoutError, AsyncOpenAI, OpenAIError

from headkv_vllm.needle.tasks import TASKS, NeedleSample, generate_samples
from headkv_vllm.needle.vocabulary import VALUES, WORDS

Manner = Literal["plain", "streamed", "left early", "sampled twice"]
MANNERS: Final[tuple[Manner, ...]] = ("plain", "streamed", "left early", "sampled twice")
WEIGHTS: Final = (4, 4, 1, 1)
PATIENCE: Final = 120.0
"""After this many seconds a request counts as hung."""

OWN: Final[tuple[dict[str, Any], ...]] = (
    {},
    {},
    {"headkv_budget": 0},
    {"headkv_budget": 64},
    {"headkv_budget": 256},
    {"headkv_keep_ratio": 0.25},
    {"headkv_policy": "uniform"},
    {"headkv_policy": "adakv", "headkv_budget": 96},
    {"headkv_policy": "headkv_ada"},
    {"headkv_policy": "streaming"},
    {"headkv_budget": 64, "headkv_compress_every": 32},
    {"headkv_budget": 48, "headkv_compress_every": 16, "headkv_policy": "adakv"},
)
"""The plugin's arguments of requests."""

CHOICES: Final = [
    word for word in VALUES if not any(word != other and word.startswith(other) for other in WORDS)
]
"""Words for structured output. No word begins with another one: after that one the grammar would
allow no token of this small vocabulary, which is an error in vLLM."""


@dataclass(frozen=True)
class TrafficQuestion:
    """A greedy request. body: its fields besides the prompt."""

    prompt: str
    body: dict[str, Any]


@dataclass(frozen=True)
class TrafficAnswer:
    """An answer. tokens: its tokens, if log-probabilities were requested."""

    text: str
    finish_reason: str | None
    tokens: tuple[str, ...]


@dataclass
class Tally:
    """Counts of the requests. wrong, failed: lines for people."""

    manners: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    hung: int = 0

    @property
    def num_requests(self) -> int:
        return self.manners.total()


def draw_questions(num_questions: int, seed: int) -> list[TrafficQuestion]:
    """Prompts of 50 to 3,000 tokens, many with the start of another; answers of all lengths."""
    chance = random.Random(seed)
    samples = _samples(seed)
    questions: list[TrafficQuestion] = []
    while len(questions) < num_questions:
        prompt = next(samples).prompt
        if questions and chance.random() < 0.4:
            earlier = chance.choice(questions).prompt.split()
            prompt = " ".join(earlier[: chance.randint(1, len(earlier))] + prompt.split()[-60:])
        questions.append(TrafficQuestion(prompt, _body(chance, prompt)))
    return questions


def _samples(seed: int) -> Iterator[NeedleSample]:
    chance = random.Random(seed)
    while True:
        task, length = chance.choice(TASKS), round(50 * 60 ** chance.random())
        yield from generate_samples(task, max(length, 64), 1, seed=chance.randrange(2**30))


def _body(chance: random.Random, prompt: str) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": 0, "max_tokens": chance.choice([1, 8, 32, 64, 160, 320])}
    extra: dict[str, Any] = {}
    if own := chance.choice(OWN):
        extra["vllm_xargs"] = own
    kind = chance.choice(["free", "on", "stop", "logprobs", "choice"])
    words = chance.sample(sorted(set(prompt.split())), 3)
    if kind == "on":
        extra["ignore_eos"] = True
    elif kind == "stop":
        body["stop"] = words[:2]
    elif kind == "logprobs":
        body["logprobs"] = 3
    elif kind == "choice":
        extra["structured_outputs"] = {"choice": chance.sample(CHOICES, 3)}
    return {**body, "extra_body": extra}


class TrafficClient:
    """Sends requests to one server. Each ends with an answer, an error or after PATIENCE."""

    def __init__(self, url: str, model: str) -> None:
        self._openai = AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, max_retries=0
        )
        self._model = model

    async def ask(self, question: TrafficQuestion) -> TrafficAnswer:
        """The whole answer."""
        answered = await self._openai.completions.create(
            model=self._model, prompt=question.prompt, **question.body
        )
        choice = answered.choices[0]
        tokens = tuple(choice.logprobs.tokens or ()) if choice.logprobs else ()
        return TrafficAnswer(choice.text, choice.finish_reason, tokens)

    async def read(
        self, question: TrafficQuestion, num_chunks: int | None = None
    ) -> TrafficAnswer | None:
        """The streamed answer; None if the client leaves after `num_chunks` chunks."""
        stream = await self._openai.completions.create(
            model=self._model, prompt=question.prompt, stream=True, **question.body
        )
        text, tokens, reason, num_read = "", [], None, 0
        async for chunk in stream:
            (choice,) = chunk.choices
            text, reason, num_read = text + choice.text, choice.finish_reason, num_read + 1
            tokens += choice.logprobs.tokens or [] if choice.logprobs else []
            if num_read == num_chunks:
                await stream.close()
                return None
        return TrafficAnswer(text, reason, tuple(tokens))

    async def sample(self, question: TrafficQuestion) -> int:
        """How many answers come back to a request for two that are drawn at random.

        Without a seed: on a CPU, vLLM 0.32's own sampler ends the engine where a prompt with one is
        read in chunks.
        """
        body = {**question.body, "temperature": 1.0, "n": 2}
        answered = await self._openai.completions.create(
            model=self._model, prompt=question.prompt, **body
        )
        return len(answered.choices)

    async def close(self) -> None:
        await self._openai.close()


async def visit(
    client: TrafficClient,
    question: TrafficQuestion,
    expected: TrafficAnswer,
    chance: random.Random,
    tally: Tally,
) -> None:
    """One request in some manner; the tally gets what came of it."""
    (manner,) = chance.choices(MANNERS, WEIGHTS)
    answer: TrafficAnswer | None = expected
    try:
        if manner == "plain":
            answer = await client.ask(question)
        elif manner == "streamed":
            answer = await client.read(question)
        elif manner == "left early":
            answer = await client.read(question, chance.randint(1, 6)) or expected
        elif await client.sample(question) != 2:
            tally.wrong.append(f"{question.body}: not two answers")
    except APITimeoutError:
        tally.hung += 1
    except OpenAIError as error:
        tally.failed.append(f"{question.body}: {error}")
    if answer != expected:
        tally.wrong.append(f"{manner}, {question.body}: {answer} in place of {expected}")
    tally.manners[manner] += 1


async def answers_alone(
    client: TrafficClient, questions: list[TrafficQuestion]
) -> list[TrafficAnswer]:
    """Each question by itself, on a server that does nothing else."""
    return [await client.ask(question) for question in questions]


async def soak(
    client: TrafficClient,
    questions: list[TrafficQuestion],
    expected: list[TrafficAnswer],
    num_clients: int,
    is_over: Any,
    seed: int,
) -> Tally:
    """Clients that ask one question after the other until `is_over(tally)`."""
    tally = Tally()

    async def keep_asking(index: int) -> None:
        chance = random.Random(f"{seed} {index}")
        while not is_over(tally):
            chosen = chance.randrange(len(questions))
            await visit(client, questions[chosen], expected[chosen], chance, tally)

    await asyncio.gather(*(keep_asking(index) for index in range(num_clients)))
    return tally

# SPDX-License-Identifier: Apache-2.0
"""Asks a real server each question with several budgets, and shows the answers."""

import re
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from openai import OpenAI
from rich.console import Console

from headkv_vllm.demo.server import BLOCK_SIZE, NAME, blocks_held, served
from headkv_vllm.server.process import ServerProcess

WIDTH: Final = 80
KEPT: Final[dict[str, dict[str, Any]]] = {
    "the whole prompt": {"headkv_budget": 0},
    "a quarter": {"headkv_keep_ratio": 0.25},
    "an eighth": {"headkv_keep_ratio": 0.125},
}
"""The kept part of the prompt, and the request arguments for it."""


@dataclass(frozen=True)
class Question:
    """text: the question for people. expected: a right answer contains it. prompt: all of it.

    chat: whether `prompt` is a user's message in a chat, or a plain text to complete.
    """

    text: str
    expected: str
    prompt: str
    max_tokens: int
    chat: bool

    def is_answered_by(self, text: str) -> bool:
        """Whether `expected` stands in `text` as whole words, in any case."""
        words = rf"(?<!\w){re.escape(self.expected)}(?!\w)"
        return bool(re.search(words, text, re.IGNORECASE))


@dataclass(frozen=True)
class Answer:
    """The result of a request.

    cached: prompt tokens from the prefix cache.
    held: KV blocks of the prompt, after its compression.
    first_token, next_tokens: seconds to the first token, and of each token after it.
    """

    text: str
    num_prompt_tokens: int
    cached: int
    held: int
    first_token: float
    next_tokens: float


def ask_all(arguments: Sequence[str], questions: Sequence[Question], console: Console) -> bool:
    """Serve, ask `questions`, show the answers. True if all compressed answers are right.

    Raises ServerError when the server does not start.
    """
    num_right = 0
    with (
        served(arguments, console) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        mib_per_block = _mib_per_block(server)
        for question in questions:
            console.print(f"\n[bold]{question.text}[/bold]", highlight=False)
            for kept, xargs in KEPT.items():
                answer = _ask(client, server, question, xargs)
                is_right = question.is_answered_by(answer.text)
                num_right += is_right and _is_compressed(xargs)
                _show(console, kept, answer, mib_per_block, is_right)
    total = len(questions) * sum(map(_is_compressed, KEPT.values()))
    console.print(f"\n{num_right} of {total} answers from compressed prompts are right.")
    return num_right == total


def _is_compressed(xargs: dict[str, Any]) -> bool:
    return xargs.get("headkv_budget") != 0


def _ask(
    client: OpenAI, server: ServerProcess, question: Question, xargs: dict[str, Any]
) -> Answer:
    started = time.perf_counter()
    parts, times, usage, identity = [], [], None, ""
    for chunk, text in _stream(client, question, xargs):
        identity, usage = chunk.id, chunk.usage or usage
        if text:
            parts.append(text)
            times.append(time.perf_counter())
    if usage is None or not times:
        return Answer("(no answer)", 0, 0, 0, time.perf_counter() - started, 0.0)
    details = usage.prompt_tokens_details
    held = -(-usage.prompt_tokens // BLOCK_SIZE)
    if _is_compressed(xargs):
        held = blocks_held(server, identity)[1]
    return Answer(
        text="".join(parts).strip(),
        num_prompt_tokens=usage.prompt_tokens,
        cached=(details.cached_tokens or 0) if details else 0,
        held=held,
        first_token=times[0] - started,
        next_tokens=(times[-1] - times[0]) / max(1, len(times) - 1),
    )


def _stream(
    client: OpenAI, question: Question, xargs: dict[str, Any]
) -> Iterator[tuple[Any, str | None]]:
    options: dict[str, Any] = {
        "model": NAME,
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": {"vllm_xargs": xargs},
    }
    if question.chat:
        options["messages"] = [{"role": "user", "content": question.prompt}]
        for chunk in client.chat.completions.create(**options):
            yield chunk, chunk.choices[0].delta.content if chunk.choices else None
    else:
        for chunk in client.completions.create(prompt=question.prompt, **options):
            yield chunk, chunk.choices[0].text if chunk.choices else None


def _mib_per_block(server: ServerProcess) -> float:
    """MiB of a block, over all layers and heads."""
    config = httpx.get(f"{server.url}/v1/headkv/config").json()
    return float(config["block_bytes"]) / 2**20


def _show(
    console: Console, kept: str, answer: Answer, mib_per_block: float, is_right: bool
) -> None:
    """One answer, in lines of at most WIDTH characters."""
    sign = "[green]right[/green]" if is_right else "[red]wrong[/red]"
    console.print(
        f"  {kept + ':':18}{answer.held:4} blocks, {answer.held * mib_per_block:5.1f} MiB, "
        f"{1000 * answer.next_tokens:4.0f} ms a token, {sign}",
        highlight=False,
    )
    details = (
        f"{answer.cached:,} of {answer.num_prompt_tokens:,} tokens from the prefix cache, "
        f"first token after {answer.first_token:.1f} s"
    )
    console.print(f"    {details}", style="dim", highlight=False)
    indent = "    "
    text = textwrap.shorten(answer.text, 2 * (WIDTH - len(indent)), placeholder=" ...")
    lines = textwrap.fill(text, WIDTH - 2, initial_indent=indent, subsequent_indent=indent)
    console.print(lines, markup=False, highlight=False)

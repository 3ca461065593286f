# SPDX-License-Identifier: Apache-2.0
"""Questions about a text that no model knows, in chat format, to a real language model.

Each question is asked with the whole prompt in the cache, with a quarter of it, and with an
eighth. All of them begin with the same text, so the prefix cache serves it from the second on.
"""

import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from openai import OpenAI
from rich.console import Console

from headkv_vllm.demo.server import blocks_held, served
from headkv_vllm.server.process import ServerProcess

DOCUMENT: Final = Path(__file__).with_name("document.txt")
NAME: Final = "demo"
BLOCK_SIZE: Final = 16
MAX_TOKENS: Final = 32

QUESTIONS: Final = (
    ("Who is the captain of the ferry?", "Odette Farrow"),
    ("Who is the keeper of the lighthouse?", "Wilhelmina Stroud"),
    ("What are the names of the three wind turbines?", "Agnes, Bertram and Clove"),
    ("Who is the harbour master?", "Lucille Tregarth"),
)
"""Each with what its answer must hold."""
KEPT: Final = (("the whole prompt", None), ("a quarter", 0.25), ("an eighth", 0.125))


@dataclass(frozen=True)
class Answer:
    """cached: prompt tokens from the prefix cache. held: blocks after the prompt. seconds_first: to
    the first token. seconds: of each token after it.
    """

    text: str
    num_prompt_tokens: int
    cached: int
    held: int
    seconds_first: float
    seconds: float


def run(model: Path, console: Console) -> bool:
    """Serve the model, ask, show what came of it. Returns whether all compressed answers are right.

    Raises ServerError when the server does not start.
    """
    arguments = [str(model), "--served-model-name", NAME]
    arguments += ["--block-size", str(BLOCK_SIZE), "--max-model-len", "4096"]
    arguments += ["--enforce-eager", "--enable-prompt-tokens-details"]
    wrong = 0
    with (
        served(arguments, console) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        mib_per_block = _mib_per_block(server)
        for question, expected in QUESTIONS:
            console.print(f"\n[bold]{question}[/bold]", highlight=False)
            for name, answer in _asked(client, server, question):
                is_right = expected.lower() in answer.text.lower()
                wrong += not is_right and name != KEPT[0][0]
                _show(console, name, answer, mib_per_block, is_right)
    num_compressed = len(QUESTIONS) * (len(KEPT) - 1)
    console.print(
        f"\n{num_compressed - wrong} of {num_compressed} answers from compressed prompts are right."
    )
    return wrong == 0


def _asked(client: OpenAI, server: ServerProcess, question: str) -> Iterator[tuple[str, Answer]]:
    for name, keep_ratio in KEPT:
        asked = {"headkv_budget": 0} if keep_ratio is None else {"headkv_ratio": keep_ratio}
        yield name, _ask(client, server, question, asked)


def _ask(client: OpenAI, server: ServerProcess, question: str, asked: dict[str, Any]) -> Answer:
    content = f"{DOCUMENT.read_text()}\n{question}"
    started = time.perf_counter()
    stream = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": content}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"vllm_xargs": asked},
    )
    parts, times, usage, identity = [], [], None, ""
    for chunk in stream:
        identity = chunk.id
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            parts.append(chunk.choices[0].delta.content)
            times.append(time.perf_counter())
    assert usage is not None, "the server was asked for it"
    details = usage.prompt_tokens_details
    is_compressed = asked != {"headkv_budget": 0}
    stock = -(-usage.prompt_tokens // BLOCK_SIZE)
    return Answer(
        "".join(parts).strip(),
        usage.prompt_tokens,
        (details.cached_tokens or 0) if details else 0,
        blocks_held(server, identity)[1] if is_compressed else stock,
        times[0] - started,
        (times[-1] - times[0]) / max(1, len(times) - 1),
    )


def _mib_per_block(server: ServerProcess) -> float:
    """Of all layers and heads, as the server tells it."""
    config = httpx.get(f"{server.url}/v1/headkv/config").json()
    return float(config["block_bytes"]) / 2**20


def _show(
    console: Console, name: str, answer: Answer, mib_per_block: float, is_right: bool
) -> None:
    """One answer, in lines of at most 80 characters."""
    sign = "[green]right[/green]" if is_right else "[red]wrong[/red]"
    console.print(
        f"  {name + ':':18}{answer.held:4} blocks, {answer.held * mib_per_block:5.1f} MiB, "
        f"{1000 * answer.seconds:4.0f} ms a token, {sign}",
        highlight=False,
    )
    from_cache = f"{answer.cached:,} of {answer.num_prompt_tokens:,} tokens from the prefix cache"
    text = textwrap.shorten(answer.text, 150, placeholder=" ...")
    console.print(
        f"    {from_cache}, first token after {answer.seconds_first:.1f} s",
        style="dim",
        highlight=False,
    )
    console.print(
        textwrap.fill(text, 74, initial_indent="    ", subsequent_indent="    "),
        markup=False,
        highlight=False,
    )

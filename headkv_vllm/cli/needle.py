# SPDX-License-Identifier: Apache-2.0
"""`headkv needle ...`: the bundled model's folder, and prompts for it."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from headkv_vllm.errors import SettingsError
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import (
    KEYS_ASKED,
    MAX_TOKENS,
    MIN_TOKENS,
    MULTI_VALUES,
    TASKS,
    generate_samples,
)

needle_app = typer.Typer(
    name="needle",
    help="The bundled needle model: a tiny Llama that retrieves keys from filler text.",
    no_args_is_help=True,
)


@needle_app.command()
def path() -> None:
    """Print the folder of the bundled model, ready for `vllm serve`."""
    typer.echo(checkpoint_path())


@needle_app.command()
def prompts(
    task: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(TASKS)}: a single needle; one key among many; a needle with "
            f"{MULTI_VALUES} values; {KEYS_ASKED} keys at once; a key that names another key; "
            "a key with two statements and a fact that says which of them is right."
        ),
    ] = "multi-key",
    tokens: Annotated[
        int,
        typer.Option(help=f"Prompt length with the BOS token, {MIN_TOKENS} to {MAX_TOKENS}."),
    ] = 1024,
    n: Annotated[int, typer.Option(help="Number of prompts.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same prompts.")] = 7,
) -> None:
    """Print prompts and their answers as JSON lines {"prompt", "answer"}.

    The prompt text has no BOS word: the tokenizer adds it, and --tokens counts it.
    """
    try:
        samples = generate_samples(task, tokens, n, seed)  # type: ignore[arg-type]
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    for sample in samples:
        typer.echo(json.dumps({"prompt": sample.prompt, "answer": sample.answer}))


@needle_app.command()
def samples(
    tokens: Annotated[
        list[int], typer.Option(help="Prompt length; give it more than once for several.")
    ] = [512, 1024],  # noqa: B006
    n: Annotated[int, typer.Option(help="Number of samples of each task and length.")] = 4,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 1234,
) -> None:
    """Print samples for `headkv score --samples`, all tasks, as JSON lines.

    Score the model with --template '{context} {question}'.
    """
    from headkv_vllm.needle.tasks import score_samples

    try:
        for sample in score_samples(tokens, n, seed):
            typer.echo(json.dumps(asdict(sample)))
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None

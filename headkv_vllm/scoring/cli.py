# SPDX-License-Identifier: Apache-2.0
"""`headkv score MODEL`: measure the head scores of a model and write them to a file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headkv_vllm.command_line import INTERRUPTED, check_out, model_name, readable_errors

BUILT_IN_ONLY = "Built-in samples only."


def score(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or its hub name.")],
    method: Annotated[
        str,
        typer.Option(
            help="r2 (retrieval and reasoning): attention to the whole right statement. "
            "r (retrieval): how often the most attended token is the one that is said next."
        ),
    ] = "r2",
    out: Annotated[
        Path | None, typer.Option(help="Score file to write. Without it: NAME-METHOD.json.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The model's name in the file. Without it: the last part of MODEL."),
    ] = None,
    samples: Annotated[
        str,
        typer.Option(
            metavar="N|FILE",
            help="How many built-in samples per length, or a JSON lines file of your own task: "
            "context, question, answer and, if known, evidence.",
        ),
    ] = "20",
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,..",
            help=f"Lengths of prompt and answer in tokens. {BUILT_IN_ONLY} "
            "Without it: 1024,2048,4096.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help=f"The same seed makes the same samples. {BUILT_IN_ONLY} Without it: 0."),
    ] = None,
    haystack: Annotated[
        Path | None,
        typer.Option(
            help=f"Text file, or folder of .txt files, to hide needles in. {BUILT_IN_ONLY} "
            "Without it: generated prose."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="The prompt's text, with {context} and {question} in it."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in the tokenizer's chat template.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="auto (all GPUs, or the CPU), cpu, cuda or cuda:N.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (the checkpoint's), bfloat16, float16 or float32.")
    ] = "auto",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Without it: PyTorch chooses.")
    ] = None,
    allow_few: Annotated[
        bool, typer.Option("--allow-few", help="Write scores though few answers are right.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop the partial results of an interrupted run.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write over an existing score file.")
    ] = False,
) -> None:
    """Measure how much each attention head of MODEL retrieves, and write a score file.

    The model answers questions about long texts. While it writes an answer,
    every head is scored by the attention that it pays to the part of the text
    that holds it; only right answers count. Serve with the file: vllm serve
    MODEL --attention-backend headkv --additional-config
    '{"headkv": {"scores": "FILE"}}'.

    An interrupted run goes on where it stopped when the same command is given
    again.
    """
    console = Console(stderr=True)
    with readable_errors():
        from headkv_vllm.scoring import request as parse
        from headkv_vllm.scoring.job import run_job

        title = name or model_name(model)
        wanted = parse.ScoreRequest(
            model=model,
            revision=revision,
            name=title,
            method=parse.parse_method(method),
            source=parse.parse_source(samples, lengths, seed, haystack),
            template=parse.parse_template(template, chat=chat),
            out=check_out(out or Path(f"{title}-{method}.json"), force=force),
        )
        hardware = parse.Hardware(device, dtype, threads)
        try:
            run_job(wanted, hardware, allow_few=allow_few, restart=restart, console=console)
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on where it stopped")
            raise typer.Exit(INTERRUPTED) from None
    typer.echo(wanted.out)

# SPDX-License-Identifier: Apache-2.0
"""`headkv score MODEL`: measure the head scores of a model and write them to a file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headkv_vllm.output.command_line import INTERRUPTED, check_out, model_name, readable_errors

BUILT_IN_ONLY = "Built-in samples only."


def score(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or its hub name.")],
    method: Annotated[
        str,
        typer.Option(
            help="grad: how much the answer's likelihood hangs on what the head attends from afar. "
            "r2 (retrieval and reasoning): attention to the whole right statement. "
            "r (retrieval): how often the most attended token is the one that is said next."
        ),
    ] = "grad",
    answers: Annotated[
        str,
        typer.Option(
            help="forced: heads are scored on the expected answer; it counts when the model would "
            "choose more than half of its tokens itself. "
            "generated: on what the model says; it counts with more than half of the words."
        ),
    ] = "forced",
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
    ] = "10",
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,..",
            help=f"Lengths of prompt and answer in tokens. {BUILT_IN_ONLY} "
            "Without it: 512,1024,2048.",
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
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask in the tokenizer's chat template, or not. Without it: if there is one.",
        ),
    ] = None,
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
        bool, typer.Option("--allow-few", help="Write scores though few samples count.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop the partial results of an interrupted run.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write over an existing score file.")
    ] = False,
) -> None:
    """Measure how much each attention head of MODEL retrieves, and write a score file.

    The model is asked questions about long texts. While it gives an answer,
    every head is scored by how much the answer hangs on it; answers that the
    model does not find in the text do not count. Serve with the file: vllm
    serve MODEL --attention-backend headkv --additional-config
    '{"headkv": {"scores": "FILE"}}'.

    An interrupted run goes on where it stopped when the same command is given
    again.
    """
    console = Console(stderr=True)
    with readable_errors():
        from headkv_vllm.scoring import request as parse
        from headkv_vllm.scoring.job import run_job

        title = name or model_name(model)
        known_method = parse.parse_method(method)
        wanted = parse.ScoreRequest(
            model=model,
            revision=revision,
            name=title,
            method=known_method,
            answers=parse.parse_answers(answers),
            source=parse.parse_source(known_method, samples, lengths, seed, haystack),
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

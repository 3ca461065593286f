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
            help="grad: how much the answer's likelihood depends on the head's attention to far "
            "tokens. r2 (retrieval and reasoning): attention to the whole right statement. "
            "r (retrieval): how often the most attended token is the next token of the answer."
        ),
    ] = "grad",
    answers: Annotated[
        str,
        typer.Option(
            help="forced: scores heads on the expected answer; a sample counts if the model itself "
            "would choose more than half of the tokens. generated: scores heads on the model's "
            "answer; a sample counts if it has more than half of the expected words."
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
            help="Number of built-in samples per length, or a JSON Lines file of your own task "
            "with context, question, answer and, if known, evidence.",
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
            help="Use the tokenizer's chat template, or not. Without it: if there is one.",
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
        bool, typer.Option("--allow-few", help="Write scores even if few samples count.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the partial results of an interrupted run.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite an existing score file.")
    ] = False,
) -> None:
    """Measure how much each attention head of MODEL retrieves, and write a score file.

    The model is asked questions about long texts. Each head is scored by how
    much the answer depends on it. Wrong answers do not count. Serve with the
    file: vllm serve MODEL --attention-backend headkv --additional-config
    '{"headkv": {"scores": "FILE"}}'.

    The same command continues an interrupted run.
    """
    console = Console(stderr=True)
    with readable_errors():
        from headkv_vllm.scoring import request as parse
        from headkv_vllm.scoring.job import run_job

        title = name or model_name(model)
        known_method = parse.parse_method(method)
        request = parse.ScoreRequest(
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
            run_job(request, hardware, allow_few=allow_few, restart=restart, console=console)
        except KeyboardInterrupt:
            console.print("interrupted; the same command continues the run")
            raise typer.Exit(INTERRUPTED) from None
    typer.echo(request.out)

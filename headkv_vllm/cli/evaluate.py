# SPDX-License-Identifier: Apache-2.0
"""`headkv eval MODEL`: task scores of servers with different compressions."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headkv_vllm.output.command_line import INTERRUPTED, ends_on_sigterm, readable_errors


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or its hub name.")],
    tasks: Annotated[
        str,
        typer.Option(metavar="NAME,..", help="Tasks, such as needle/single or ruler/vt."),
    ],
    lengths: Annotated[
        str, typer.Option(metavar="N,..", help="Prompt lengths in tokens; 0 does not cut texts.")
    ] = "1024",
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,..",
            help="full (no compression), headkv, uniform or another policy of the settings. "
            "Without it: full,headkv,uniform.",
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="N,..",
            help="Mean tokens kept per KV head; with a point, a part of the prompt. "
            "Without it: 128.",
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Samples per task and length.")] = 50,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the benchmarks' files, for tasks that read files."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and report. Without it: eval-MODEL.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Use this running server and start none."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Use the tokenizer's chat format, for instruct models."),
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens of an answer. Without it: the task's.")
    ] = None,
    question_agnostic: Annotated[
        bool,
        typer.Option(
            "--question-agnostic", help="Compress the context before the question is known."
        ),
    ] = False,
    stock: Annotated[
        bool,
        typer.Option(
            "--stock/--no-stock",
            help="Serve full with stock vLLM, or with the compressed server and budget 0.",
        ),
    ] = True,
    settings: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="More headkv settings, for all policies."),
    ] = None,
    block_size: Annotated[int, typer.Option(help="vLLM's --block-size, in tokens.")] = 16,
    dtype: Annotated[
        str, typer.Option(help="vLLM's --dtype: auto, bfloat16, float16 or float32.")
    ] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(help="vLLM's --max-model-len. Without it: the model's.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name. Without it: the model's.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    serve_args: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="More arguments for vllm serve, in quotes."),
    ] = None,
) -> None:
    """Measure what compression costs: task scores with intervals, and the memory kept.

    The command starts stock vLLM for full, and then one compressed server for all policies and
    budgets. Each request brings its policy and budget, so a prompt is computed once for all of
    them. A report, pictures and all answers go to --out. Answers that are there are not asked
    again: the same command continues an interrupted run, and a larger grid adds to the results.
    """
    console = Console(stderr=True)
    with readable_errors(), ends_on_sigterm():
        try:
            from headkv_vllm.evaluation import request as parse
            from headkv_vllm.evaluation.tasks import TASKS

            common = parse.parse_settings(settings)
            address = parse.parse_url(url)
            integer = parse.integer
            request = parse.EvalRequest(
                model=model,
                tasks=parse.parse_names("--tasks", tasks, tuple(TASKS)),
                lengths=parse.parse_lengths(lengths),
                compressions=parse.parse_compressions(policies, budgets, common, address),
                n=integer("-n", n, minimum=1),
                seed=integer("--seed", seed, minimum=0),
                out=parse.parse_out(out, model),
                settings=common,
                data=parse.parse_folder("--data", data),
                url=address,
                tokenizer=tokenizer,
                block_size=integer("--block-size", block_size, minimum=1),
                dtype=parse.parse_dtype(dtype),
                max_model_len=parse.optional_integer("--max-model-len", max_model_len),
                chat=chat,
                max_tokens=parse.optional_integer("--max-tokens", max_tokens),
                question_agnostic=question_agnostic,
                stock=stock,
                concurrency=integer("--concurrency", concurrency, minimum=1),
                serve_arguments=parse.parse_serve_arguments(serve_args),
            )
            from headkv_vllm.evaluation.job import run_job

            report = run_job(request, shlex.join(["headkv", *sys.argv[1:]]), console)
        except KeyboardInterrupt:
            console.print("interrupted; the same command continues the run")
            raise typer.Exit(INTERRUPTED) from None
    typer.echo(report)

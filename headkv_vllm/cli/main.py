# SPDX-License-Identifier: Apache-2.0
"""The `headkv` command."""

from typing import Annotated

import typer
from rich.console import Console

from headkv_vllm.cli.check import Checked, check
from headkv_vllm.cli.evaluate import evaluate
from headkv_vllm.cli.needle import needle_app
from headkv_vllm.cli.plan import plan
from headkv_vllm.cli.score import score
from headkv_vllm.cli.scores import scores_app
from headkv_vllm.cli.serve import PassedOn, serve
from headkv_vllm.output.command_line import ends_on_sigterm, readable_errors

app = typer.Typer(
    name="headkv",
    help="Serve long prompts from a compressed KV cache: vllm serve MODEL "
    "--attention-backend headkv. This command starts servers, checks models, measures head scores, "
    "and evaluates compressed models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(cls=PassedOn)(serve)
app.command(cls=Checked)(check)
app.command()(score)
app.command()(plan)
app.command(name="eval")(evaluate)
app.add_typer(needle_app, name="needle")
app.add_typer(scores_app, name="scores")


@app.command()
def demo(
    model: Annotated[
        str | None,
        typer.Argument(help="An instruct model: its folder, or its hub name.", show_default=False),
    ] = None,
    *,
    needle: Annotated[
        bool, typer.Option("--needle", help="Ask the bundled needle model: no download.")
    ] = False,
) -> None:
    """Start a real server, and ask it about a long text that no model knows.

    Each question is asked three times: with the full prompt in the KV cache, with a quarter of it,
    and with an eighth. The command shows each answer, the KV blocks and MiB of the prompt, and the
    time per token. The exit code is 0 if all answers from compressed prompts are right.
    scripts/demo runs this command with a real model.
    """
    from headkv_vllm.demo import documents
    from headkv_vllm.demo.questions import ask_all

    if needle == (model is not None):
        raise typer.BadParameter("give a MODEL, or --needle, and not both")
    if model is None:
        arguments, questions = documents.needle_server(), documents.needle_questions()
    else:
        arguments, questions = documents.page_server(model), documents.page_questions()
    with readable_errors(), ends_on_sigterm():
        all_right = ask_all(arguments, questions, Console())
    raise typer.Exit(0 if all_right else 1)

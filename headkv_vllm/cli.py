# SPDX-License-Identifier: Apache-2.0
"""The `headkv` command."""

from pathlib import Path
import typer
from rich.console import Console

from headkv_vllm.budgets.cli import plan
from headkv_vllm.command_line import ends_on_sigterm, readable_errors
from headkv_vllm.evaluation.cli import evaluate
from headkv_vllm.needle.cli import needle_app
from headkv_vllm.scores.cli import scores_app
from headkv_vllm.scoring.cli import score
from headkv_vllm.server.serve import PassedOn, serve

app = typer.Typer(
    name="headkv",
    help="Serve long prompts from a compressed KV cache: vllm serve MODEL "
    "--attention-backend headkv. This command shows how, and prepares what it needs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(cls=PassedOn)(serve)
app.command()(score)
app.command()(plan)
app.command(name="eval")(evaluate)
app.add_typer(needle_app, name="needle")
app.add_typer(scores_app, name="scores")


@app.command()
def demo() -> None:
    """Start a real server on the bundled needle model and ask it about long prompts.

    Shows each question, the expected and the given answer, and the KV blocks that the request
    held before and after its prompt was compressed. Ends with 0 if all answers are right.
    """
    from headkv_vllm.demo import real_model as demonstration

    with readable_errors(), ends_on_sigterm():
        all_right = demonstration.run(Path("/work/wt/smollm2"), Console())
    raise typer.Exit(0 if all_right else 1)

# SPDX-License-Identifier: Apache-2.0
"""The `headkv` command."""

import typer
from rich.console import Console

from headkv_vllm.errors import HeadKVError
from headkv_vllm.needle.cli import needle_app

app = typer.Typer(
    name="headkv",
    help="Serve long prompts from a compressed KV cache: vllm serve MODEL "
    "--attention-backend headkv. This command shows how, and prepares what it needs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(needle_app, name="needle")


@app.command()
def demo() -> None:
    """Start a real server on the bundled needle model and ask it about long prompts.

    Shows each question, the expected and the given answer, and the KV blocks that the request
    held before and after its prompt was compressed. Ends with 0 if all answers are right.
    """
    from headkv_vllm import demo as demonstration

    console = Console()
    try:
        all_right = demonstration.run(console)
    except HeadKVError as error:
        console.print(f"headkv: error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if all_right else 1)

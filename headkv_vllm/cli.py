# SPDX-License-Identifier: Apache-2.0
"""The `headkv` command."""

import typer

from headkv_vllm.needle.cli import needle_app

app = typer.Typer(
    name="headkv",
    help="Serve long prompts from a compressed KV cache: vllm serve MODEL "
    "--attention-backend headkv. This command prepares and inspects what that needs.",
    no_args_is_help=True,
)
app.add_typer(needle_app, name="needle")


@app.callback()
def main() -> None:
    """Keeps `headkv` a group of commands, whatever their number."""

# SPDX-License-Identifier: Apache-2.0
"""`headkv check MODEL ...`: whether a model will be served, without starting an engine."""

import os
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console
from rich.table import Table

from headkv_vllm.cli.serve import PLUGINS_VARIABLE, PassedOn, plugins, with_backend
from headkv_vllm.head_scores.scores import needs_file
from headkv_vllm.output.command_line import readable_errors

if TYPE_CHECKING:
    from headkv_vllm.engine.model_check import ModelCheck

HELP: Final = """\
Usage: headkv check MODEL [any option of vllm serve]

Tells whether headkv serve would serve MODEL with these options, without starting an engine and
without reading weights: which layers are compressed, which score file fits, and how much memory
the KV cache of a prompt needs. The exit code is 1 if the model or an option is refused.

Examples:

  headkv check MODEL
  headkv check MODEL --max-model-len 16384 --additional-config '{"headkv": {"budget": 512}}'

Other help:

  headkv serve --help=all    the options of vllm serve
  headkv plan --help         what every KV head keeps
"""


class Checked(PassedOn):
    """The same arguments as `headkv serve`."""

    help_text = HELP


def check(context: typer.Context) -> None:
    """Tell whether a model and its options will be served, without starting an engine."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ[PLUGINS_VARIABLE] = plugins(os.environ)
    with readable_errors():
        arguments = with_backend(context.args)
        from headkv_vllm.engine.model_check import check_model

        found = check_model(arguments)
    _show(found, Console(highlight=False))


def _show(found: "ModelCheck", console: Console) -> None:
    plan = found.plan
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("model", f"{found.architecture}, {found.dtype}, on {found.platform}")
    others = found.num_layers - found.num_full_layers
    table.add_row(
        "layers",
        f"{found.num_full_layers} of {found.num_layers} are compressed"
        + (f"; {others} have a sliding window, and stay as in stock vLLM" if others else ""),
    )
    table.add_row("head scores", _scores(found))
    table.add_row("block size", f"{plan.block_size} tokens")
    prompt = f"KV cache of {found.model.max_model_len:,} tokens"
    if plan.compressed:
        table.add_row(
            prompt,
            f"{plan.kv_bytes_held / 2**20:,.1f} MiB after its prefill ({plan.kept_share:.1%}), "
            f"{plan.kv_bytes_stock / 2**20:,.1f} MiB in stock vLLM"
            + (", in the layers that are compressed" if others else ""),
        )
    else:
        table.add_row(prompt, f"{plan.kv_bytes_stock / 2**20:,.1f} MiB: {plan.reason}")
    console.print(table)
    console.print("\nheadkv and vLLM accept this model and these options.")


def _scores(found: "ModelCheck") -> str:
    scores = found.model.scores
    if not needs_file(found.model.settings):
        return "the policy uses none"
    if scores.uniform:
        return "none for this model, so all heads get the same budget: see headkv score --help"
    return scores.source

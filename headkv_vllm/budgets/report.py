# SPDX-License-Identifier: Apache-2.0
"""Prints a plan as tables."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from headkv_vllm.budgets.plan import Plan

MAX_HEAD_COLUMNS = 16
"""With more KV heads than this, the table shows the minimum, mean and maximum of each layer."""


def print_plan(plan: Plan) -> None:
    """Print `plan` to stdout: first the totals, then what the heads of each layer keep."""
    console = Console(highlight=False)
    _print_table(console, _totals(plan))
    if plan.reason is not None:
        console.print(f"\nnot compressed: {plan.reason}", soft_wrap=True, markup=False)
        return
    if plan.first_point > plan.num_prompt_tokens:
        console.print(f"\ncompressed for the first time when it has {plan.first_point} tokens")
    console.print(
        f"\nblocks of {plan.block_size} tokens that each KV head keeps, in addition to "
        f"{_tail(plan)}, which every head keeps"
        + (" (the prompt decides the split inside each layer):" if plan.adaptive else ":"),
        soft_wrap=True,
    )
    wide = len(plan.head_blocks[0]) > MAX_HEAD_COLUMNS
    _print_table(console, _layers(plan) if wide else _heads(plan))


def _totals(plan: Plan) -> Table:
    table = _table(f"prompt of {plan.num_prompt_tokens} tokens", "HeadKV", "stock vLLM")
    stock = str(plan.num_blocks_stock)
    table.add_row("blocks held after prefill", str(plan.num_blocks_held), stock)
    table.add_row("blocks held in prefill", str(plan.num_blocks_prefill), stock)
    if plan.max_blocks_held is not None:
        table.add_row("blocks held while it generates, at most", str(plan.max_blocks_held), "all")
    held = _size(plan.kv_bytes_held)
    table.add_row("KV cache after prefill", held, _size(plan.kv_bytes_stock))
    mean = f"{plan.mean_kept_tokens:.1f}"
    table.add_row("tokens per KV head, mean", mean, str(plan.num_prompt_tokens))
    table.add_row("part of the prompt", f"{plan.kept_share:.1%}", "100.0%")
    return table


def _tail(plan: Plan) -> str:
    if plan.first_point > plan.num_prompt_tokens:
        return "the last tokens"
    return f"the last {plan.num_tail_tokens} tokens"


def _heads(plan: Plan) -> Table:
    table = _table("layer", *(f"head {head}" for head in range(len(plan.head_blocks[0]))))
    for layer, blocks in enumerate(plan.head_blocks):
        table.add_row(str(layer), *map(str, blocks))
    return table


def _layers(plan: Plan) -> Table:
    table = _table("layer", "min", "mean", "max")
    for layer, blocks in enumerate(plan.head_blocks):
        mean = sum(blocks) / len(blocks)
        table.add_row(str(layer), str(min(blocks)), f"{mean:.1f}", str(max(blocks)))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_table(console: Console, table: Table) -> None:
    """Print `table` at its full width. In a narrow console rich would cut numbers off."""
    unbound = console.options.update(width=10_000)
    console.width = max(console.width, Measurement.get(console, unbound, table).maximum)
    console.print(table)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.2f} MiB"

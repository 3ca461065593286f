# SPDX-License-Identifier: Apache-2.0
"""`headkv plan FILE`: what every KV head keeps, for one model, one budget and one prompt length."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from headkv_vllm.budgets.plan import BYTES_PER_ELEMENT, Plan, make_plan
from headkv_vllm.config import PolicyName
from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.output.command_line import readable_errors


def plan(
    file: Annotated[
        str, typer.Argument(help="Score file, or the name of a bundled one, such as needle.")
    ],
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt in tokens.")],
    budget: Annotated[
        int | None,
        typer.Option(help="Mean number of prompt tokens per KV head, observation window included."),
    ] = None,
    keep_ratio: Annotated[
        float | None,
        typer.Option(help="The budget as a part of the prompt, instead of --budget."),
    ] = None,
    block_size: Annotated[int, typer.Option(help="vLLM's --block-size, in tokens.")] = 32,
    policy: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(get_args(PolicyName))}.")
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Above 1. The part 1/beta of the budget is allocated by head score."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Observation window: the last prompt tokens, which choose what is kept."),
    ] = None,
    gqa_fold: Annotated[
        str | None,
        typer.Option(help="mean, max or sum: how query heads' scores become a KV head's score."),
    ] = None,
    min_blocks: Annotated[
        int | None, typer.Option(help="Every head keeps at least this many blocks.")
    ] = None,
    compress_every: Annotated[
        int | None,
        typer.Option(
            help="Compress again whenever the request has grown by so many tokens. 0 is off."
        ),
    ] = None,
    compress_prefill: Annotated[
        bool | None,
        typer.Option(
            "--compress-prefill", help="Compress prompts while they are read. On with the option."
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        str,
        typer.Option(help=f"{', '.join(BYTES_PER_ELEMENT)}. auto means 2 bytes per number."),
    ] = "auto",
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Number of ranks. Each allocates blocks to its own heads only.")
    ] = 1,
    png: Annotated[
        Path | None, typer.Option(help="Write a picture of the blocks of every head to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what every KV head would keep of a prompt, and how much memory this saves.

    The command starts no server and loads no model. Settings have the same defaults as in
    headkv serve.
    """
    given = {
        "budget": budget,
        "keep_ratio": keep_ratio,
        "policy": policy,
        "beta": beta,
        "window": window,
        "gqa_fold": gqa_fold,
        "min_blocks": min_blocks,
        "compress_every": compress_every,
        "compress_prefill": compress_prefill,
    }
    with readable_errors():
        made = _make_plan(
            file, given, prompt_tokens, block_size, kv_cache_dtype, tensor_parallel_size
        )
        if png is not None:
            _draw(made, file, png)
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
    else:
        from headkv_vllm.budgets.report import print_plan

        print_plan(made)


def _make_plan(
    file: str,
    given: dict[str, Any],
    num_prompt_tokens: int,
    block_size: int,
    kv_cache_dtype: str,
    tensor_parallel_size: int,
) -> Plan:
    from headkv_vllm.config import Settings
    from headkv_vllm.head_scores.file import read_score_file
    from headkv_vllm.head_scores.library import find_score_file
    from headkv_vllm.head_scores.scores import load

    settings = Settings.parse({key: value for key, value in given.items() if value is not None})
    bytes_per_element = _bytes_per_element(kv_cache_dtype)
    path = find_score_file(file)
    identity = read_score_file(path).model.identity
    _check_ranks(tensor_parallel_size, identity.num_heads)
    return make_plan(
        load(path, settings, identity).values,
        settings,
        num_prompt_tokens,
        block_size,
        identity.head_size,
        bytes_per_element,
        tensor_parallel_size,
        identity.num_heads // identity.num_kv_heads,
    )


def _bytes_per_element(kv_cache_dtype: str) -> int:
    if kv_cache_dtype not in BYTES_PER_ELEMENT:
        raise SettingsError(
            f"KV cache dtype {shown(kv_cache_dtype)} is not allowed: it must be one of "
            f"{', '.join(BYTES_PER_ELEMENT)}"
        )
    return BYTES_PER_ELEMENT[kv_cache_dtype]


def _check_ranks(world_size: int, num_heads: int) -> None:
    if world_size < 1 or num_heads % world_size:
        raise SettingsError(
            f"tensor parallel size {shown(world_size)} is not allowed: it must divide the model's "
            f"{num_heads} attention heads"
        )


def _draw(plan: Plan, file: str, path: Path) -> None:
    import numpy as np

    from headkv_vllm.output.pictures import heat_map

    title = f"{Path(file).stem}: what each KV head keeps of {plan.num_prompt_tokens:,} tokens"
    label = f"blocks of {plan.block_size} tokens"
    heat_map(np.array(plan.head_blocks), title, label, path, "KV head")

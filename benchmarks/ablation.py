# SPDX-License-Identifier: Apache-2.0
"""Which settings keep a real model's answers? The evidence for the defaults.

Run as `python -m benchmarks.ablation` in the checkout. A model reads each prompt once, with
transformers, and answers it from the whole cache. Every variant of the settings then selects what
each head keeps, by the code that the engine runs, and is asked for the same answer: all its tokens
in one pass. So hundreds of variants take minutes. An answer counts up to where it becomes right;
prompts that the whole cache answers wrongly are left out.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import torch
import typer
from transformers import DynamicCache

from benchmarks.harness.report import Out, command_line
from benchmarks.harness.report import RESULTS, Report
from headkv_vllm.budgets.adaptive import split_layer
from headkv_vllm.budgets.allocation import Bounds, allocate_head_blocks
from headkv_vllm.budgets.policies import POLICIES
from headkv_vllm.budgets.request import request_budget
from headkv_vllm.cache.selection import (
    count_best,
    pool,
    recency,
    top_positions,
    value_norms,
    window_attention,
)
from headkv_vllm.config import Settings
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.prompts import Prompt, PromptFormat
from headkv_vllm.evaluation.tasks import find_task
from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_rows import row_logits, weighted_values
from headkv_vllm.scoring.attention_scores import FullAttention
from headkv_vllm.scoring.checkpoint import Checkpoint, load_checkpoint

FloatArray = npt.NDArray[np.float64]

TASKS: Final = (
    *("ruler/niah_single_2", "ruler/niah_multikey_1", "ruler/niah_multivalue"),
    *("chat/ruler/niah_multikey_1", "chat/town/qa"),
)
CHAT: Final = "chat/"
"""What the name of a task begins with when it is asked in the model's chat format."""
SEED: Final = 2000
MAX_ANSWER: Final = 48
LONGEST_WINDOW: Final = 64


@dataclass(frozen=True)
class Variant:
    """settings: what differs from the defaults. scores: the name of a score file.

    after: how many tokens of the prompt come after the observation window; in chats only.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    scores: str = "grad"
    block_size: int = 16
    after: int = 0


WIDE: Final = {"kernel_size": 15}
AVG: Final = {"kernel_size": 15, "pooling": "avg"}
VARIANTS: Final = (
    Variant("kernel 7 max"),
    Variant("kernel 11 max", {"kernel_size": 11}),
    Variant("kernel 15 max", WIDE),
    Variant("kernel 21 max", {"kernel_size": 21}),
    Variant("kernel 11 avg", {"kernel_size": 11, "pooling": "avg"}),
    Variant("kernel 15 avg", AVG),
    Variant("kernel 21 avg", {"kernel_size": 21, "pooling": "avg"}),
    *(Variant(f"15 avg, scores {name}", AVG, scores=name) for name in ("r2", "grad+r2")),
    *(Variant(f"15 avg, policy {name}", {**AVG, "policy": name}) for name in ("headkv_ada", "adakv", "uniform")),
    *(Variant(f"15 avg, beta {beta}", {**AVG, "beta": beta}) for beta in (1.02, 1.1, 1.5)),
    *(Variant(f"15 avg, window {window}", {**AVG, "window": window}) for window in (4, 16, 32)),
    *(Variant(f"15 avg, window {window} max", {**AVG, "window": window, "query_reduction": "max"}) for window in (8, 16, 32)),
    *(Variant(f"15 avg, window {window} before template end", {**AVG, "window": window}, after=5) for window in (8, 16)),
    *(Variant(f"15 avg, window {window} max, before template end", {**AVG, "window": window, "query_reduction": "max"}, after=5) for window in (8, 16)),
    Variant("15 avg, value_norm", {**AVG, "value_norm": True}),
)


def main(
    model: Annotated[Path, typer.Argument(help="The checkpoint's folder: scripts/real-model.")],
    scores: Annotated[list[str], typer.Option(help="NAME=FILE of each score file.")],
    prompts: Annotated[int, typer.Option(min=2, help="Of each task.")] = 24,
    tokens: Annotated[int, typer.Option(min=256, help="Of each prompt.")] = 1024,
    keep_ratio: Annotated[list[float], typer.Option(help="Parts kept.")] = [0.25, 0.125, 0.0625],  # noqa: B006
    task: Annotated[list[str], typer.Option(help="chat/NAME asks in a chat.")] = [*TASKS],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = SEED,
    only: Annotated[str | None, typer.Option(help="Variants whose names hold this.")] = None,
    name: Annotated[str, typer.Option(help="Of the page.")] = "ablation",
    out: Out = RESULTS,
) -> None:
    """Ask, and write the results."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(str(model), dtype="float32")
    files = dict(text.split("=", 1) for text in scores)
    variants = [v for v in VARIANTS if only is None or only in v.name]
    asked = Asked(checkpoint, read_scores(files), variants, tuple(keep_ratio))
    found: list[dict[str, Any]] = []
    for task_name in task:
        started = time.monotonic()
        chosen = draw(task_name, prompts, tokens, seed, checkpoint)
        for prompt in chosen:
            found += [
                {"task": task_name, "prompt": prompt.sample.id, **r} for r in asked.answer(prompt)
            ]
        num = len({r["prompt"] for r in found if r["task"] == task_name})
        print(
            task_name,
            f"{num} of {len(chosen)} right, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        Path("/tmp/abl/stage2/raw.json").write_text(json.dumps(found))
    Report(
        name,
        "Which settings keep the answers?",
        command_line("ablation"),
        table(found, [v.name for v in variants], keep_ratio),
        bars=(),
        notes=[],
    ).write(out)


def read_scores(files: Mapping[str, str]) -> dict[str, FloatArray]:
    """Scores of KV heads [L, H] with a sum of 1, by name; `a+b` is the mean of two."""
    found = {}
    for name, path in files.items():
        file = read_score_file(Path(path))
        folded = fold_query_heads(file.values, file.model.identity.num_kv_heads, "mean")
        found[name] = folded / folded.sum()
    if {"grad", "r2"} <= found.keys():
        found["grad+r2"] = (found["grad"] + found["r2"]) / 2
    return found


def draw(task: str, n: int, tokens: int, seed: int, checkpoint: Checkpoint) -> list[Prompt]:
    """The prompts of `task`."""
    form = PromptFormat(checkpoint.tokenizer, task.startswith(CHAT), MAX_ANSWER)
    source = find_task(task.removeprefix(CHAT))
    samples = source.samples(n, tokens - form.num_template_tokens, seed, checkpoint.tokenizer)
    return [form.prompt(sample) for sample in samples]


@dataclass(frozen=True, eq=False)
class Asked:
    """A model, and the variants that it is asked with."""

    checkpoint: Checkpoint
    scores: dict[str, FloatArray]
    variants: Sequence[Variant]
    ratios: Sequence[float]

    def answer(self, prompt: Prompt) -> Iterable[dict[str, Any]]:
        """Whether each variant gives the whole cache's answer. Nothing where that is wrong."""
        read = ReadPrompt.read(self.checkpoint.model, prompt.ids)
        said = right_part(prompt, self.checkpoint, read)
        if not said:
            return
        queries, last, scale = window_queries(read, prompt.ids)
        with torch.no_grad():
            full = log_likelihood(read.answer(said, FullAttention(read)), said)
        for variant in self.variants:
            if variant.after and not is_chat(prompt):
                variant = Variant(variant.name, variant.settings)
            for ratio in self.ratios:
                settings = Settings(keep_ratio=ratio, **variant.settings)
                kept = kept_positions(read, queries, last, scale, settings, variant, self.scores)
                with torch.no_grad():
                    logits = read.answer(said, KeptAttention(read, kept))
                same = logits.argmax(-1).tolist() == list(said)
                yield {
                    "variant": variant.name,
                    "ratio": ratio,
                    "same": same,
                    "loss": full - log_likelihood(logits, said),
                }


def is_chat(prompt: Prompt) -> bool:
    return prompt.ids[-1] == 198  # a newline after assistant


def right_part(prompt: Prompt, checkpoint: Checkpoint, read: ReadPrompt) -> tuple[int, ...]:
    """The whole cache's answer up to where it is as right as it gets; none where it is wrong."""
    metric = METRICS[find_task(prompt.sample.task).metric]
    said = read.generate(prompt.sample.max_new_tokens, checkpoint.stop_ids)
    best = metric(prompt.sample, checkpoint.tokenizer.decode(said))
    if best == 0:
        return ()
    return next(
        said[:n]
        for n in range(1, len(said) + 1)
        if metric(prompt.sample, checkpoint.tokenizer.decode(said[:n])) == best
    )


def log_likelihood(logits: torch.Tensor, said: Sequence[int]) -> float:
    return float(logits.log_softmax(-1)[range(len(said)), list(said)].sum())


def window_queries(
    read: ReadPrompt, ids: Sequence[int]
) -> tuple[dict[int, torch.Tensor], dict[int, tuple[torch.Tensor, torch.Tensor]], float]:
    """By layer, the queries of the prompt's last tokens: [num_heads, LONGEST_WINDOW, head_size]."""
    start = len(ids) - LONGEST_WINDOW
    cache = DynamicCache(config=read.model.config)
    for index in range(read.num_layers):
        keys, values = read.layer(index)
        cache.update(keys[None, :, :start], values[None, :, :start], index)
    before = ReadPrompt(read.model, cache, torch.tensor(ids[start : start + 1]))
    attend = FullAttention(before)
    queries: dict[int, torch.Tensor] = {}
    last: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    scales = []

    def capture(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        queries[layer], last[layer] = query, (key[:, -1:], value[:, -1:])
        scales.append(scale)
        return attend(layer, query, key, value, scale)

    with torch.no_grad():
        before.answer([*ids[start + 1 :], 0], capture)
    return queries, last, scales[0]


def kept_positions(
    read: ReadPrompt,
    queries: Mapping[int, torch.Tensor],
    last: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
    scale: float,
    settings: Settings,
    variant: Variant,
    scores: Mapping[str, FloatArray],
) -> torch.Tensor:
    """Which tokens each KV head keeps: [L, H, T - 1] bool, as `Compressor` selects them."""
    block_size, after = variant.block_size, variant.after
    num_tokens = read.layer(0)[0].shape[1] + 1
    of_window = settings.model_copy(update={"window": settings.window + after})
    budget = request_budget(of_window, num_tokens, block_size)
    own = scores[variant.scores]
    kept = torch.ones(*own.shape, num_tokens - 1, dtype=torch.bool)
    if not budget.compressed:
        return kept
    allocation = allocate_head_blocks(own, budget, of_window)
    policy, num_heads = POLICIES[budget.policy], own.shape[1]
    candidates = budget.num_full_blocks * block_size
    kept[..., :candidates] = False
    for layer in range(len(own)):
        keys, values = (torch.cat(pair, 1) for pair in zip(read.layer(layer), last[layer]))
        seen = num_tokens - after
        window = queries[layer]
        end = LONGEST_WINDOW - after
        query = window[:, end - settings.window : end].unflatten(0, (num_heads, -1))
        if policy.positions == "recency":
            layer_scores = recency(candidates, settings.sink, keys.device).expand(num_heads, -1)
        else:
            attention = window_attention(
                query,
                [keys.transpose(1, 2)],
                seen,
                scale,
                reduction=settings.query_reduction,
            )
            layer_scores = pool(attention[:, : seen - settings.window], settings)[:, :candidates]
            if settings.value_norm:
                layer_scores = layer_scores * value_norms(values)[:, :candidates]
        counts = allocation[layer]
        if policy.adaptive:
            total = int(counts.sum())
            best = count_best(layer_scores, total * block_size)
            counts = split_layer(best, total, Bounds(settings.min_blocks, budget.num_full_blocks))
        heads, positions = top_positions(layer_scores, counts * block_size)
        kept[layer, heads, positions] = True
    return kept


@dataclass(frozen=True, eq=False)
class KeptAttention:
    """Attention to the kept tokens only."""

    prompt: ReadPrompt
    kept: torch.Tensor

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        prompt_key, prompt_value = self.prompt.layer(layer)
        logits = row_logits(query, prompt_key, key, scale)
        dropped = ~self.kept[layer].repeat_interleave(len(query) // len(key), 0)
        logits[..., : prompt_key.shape[1]].masked_fill_(dropped[:, None], float("-inf"))
        return weighted_values(logits.softmax(-1), prompt_value, value)


def table(
    found: list[dict[str, Any]], names: list[str], ratios: Sequence[float]
) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        row: dict[str, Any] = {"variant": name}
        for ratio in ratios:
            own = [r for r in found if r["variant"] == name and r["ratio"] == ratio]
            row[f"same at {ratio}"] = f"{100 * np.mean([r['same'] for r in own]):.0f}"
            row[f"loss at {ratio}"] = f"{np.mean([r['loss'] for r in own]):.2f}"
        rows.append(row)
    return rows


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""Which settings keep a real model's answers? The evidence for the defaults.

Run as `python -m benchmarks.ablation` in the checkout. The model answers each prompt from the whole
cache. Every variant of the settings is then asked for the same answer, up to where it becomes
right. Prompts that the whole cache answers wrongly are left out. An engine answers the same, only
slower: it needs a start for each variant.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Final

import torch
import typer

from benchmarks.harness.report import RESULTS, Out, Report, command_line
from benchmarks.kept_answers import KeptAttention, ReadWindow
from headkv_vllm.arrays import FloatArray
from headkv_vllm.config import Settings
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.prompts import Prompt, PromptFormat
from headkv_vllm.evaluation.tasks import find_task
from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.scoring.answer_pass import ReadPrompt
from headkv_vllm.scoring.attention_scores import METHODS, FullAttention
from headkv_vllm.scoring.checkpoint import Checkpoint, load_checkpoint

CHAT: Final = "chat/"
"""What the name of a task begins with when it is asked in the model's chat format."""
TASKS: Final = (
    *("ruler/niah_single_2", "ruler/niah_multikey_1", "ruler/niah_multivalue"),
    *("chat/ruler/niah_multikey_1", "chat/town/qa"),
)
SCORES: Final = Path(__file__).parents[1] / ".cache" / "score-methods"
KEPT: Final = (0.25, 0.125, 0.0625)
"""Parts of the prompt."""
MAX_ANSWER: Final = 48


@dataclass(frozen=True)
class Variant:
    """settings: what differs from the defaults. scores: the name of a score file.

    before_end: whether the observation window leaves out the chat template's last tokens, which
        come after the question.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    scores: str = "grad"
    block_size: int = 16
    before_end: bool = False


def _variants() -> Iterator[Variant]:
    yield Variant("defaults")
    for scores in ("r2", "r", "grad+r2"):
        yield Variant(f"scores {scores}", scores=scores)
    for policy in ("headkv_ada", "adakv", "pyramidkv", "uniform", "streaming", "random"):
        yield Variant(f"policy {policy}", {"policy": policy})
    for window in (4, 16, 32):
        yield Variant(f"window {window}", {"window": window})
    for window in (8, 16, 32):
        changed = {"window": window, "query_reduction": "max"}
        yield Variant(f"window {window}, query_reduction max", changed)
    for window in (8, 16):
        name = f"window {window}, before the template's end"
        yield Variant(name, {"window": window}, before_end=True)
    for size in (1, 5, 7, 11, 21, 31):
        yield Variant(f"kernel_size {size}", {"kernel_size": size})
    for size in (5, 7, 15, 21):
        changed = {"pooling": "max", "kernel_size": size}
        yield Variant(f"pooling max, kernel_size {size}", changed)
    yield Variant("value_norm", {"value_norm": True})
    for beta in (1.02, 1.1, 1.5, 2.0):
        yield Variant(f"beta {beta}", {"beta": beta})
    yield Variant("min_blocks 2", {"min_blocks": 2})
    for size in (8, 32):
        yield Variant(f"block_size {size}", block_size=size)


VARIANTS: Final = tuple(_variants())


def main(
    model: Annotated[Path, typer.Argument(help="The checkpoint's folder: scripts/real-model.")],
    prompts: Annotated[int, typer.Option(min=1, help="Of each task.")] = 12,
    tokens: Annotated[int, typer.Option(min=256, help="Of each prompt.")] = 1024,
    task: Annotated[list[str], typer.Option(help="chat/NAME asks in a chat.")] = [*TASKS],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 2000,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    out: Out = RESULTS,
) -> None:
    """Ask, and write the results."""
    if threads is not None:
        torch.set_num_threads(threads)
    comparison = Comparison(
        load_checkpoint(str(model), dtype="float32"),
        read_scores(score_files(model)),
        VARIANTS,
    )
    answers: list[Answer] = []
    for name in task:
        started, before = time.monotonic(), len(answers)
        drawn = comparison.draw(name, prompts, tokens, seed)
        for prompt in drawn:
            answers += comparison.answers(name, prompt)
        right = (len(answers) - before) // (len(comparison.variants) * len(KEPT))
        seconds = time.monotonic() - started
        print(f"{name}: {right} of {len(drawn)} count, {seconds:.0f} s", flush=True)
    write(answers, comparison.variants, out)


@dataclass(frozen=True)
class Answer:
    """What a variant made of the whole cache's right answer.

    same: whether the model chooses each of its tokens. loss: of its log-likelihood, in nats.
    """

    task: str
    prompt: str
    variant: str
    kept: float
    same: bool
    loss: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The model, the head scores [L, H] by name, and the variants."""

    checkpoint: Checkpoint
    scores: Mapping[str, FloatArray]
    variants: Sequence[Variant]

    def draw(self, task: str, n: int, tokens: int, seed: int) -> list[Prompt]:
        """The prompts of `task`."""
        tokenizer = self.checkpoint.tokenizer
        form = PromptFormat(tokenizer, task.startswith(CHAT), MAX_ANSWER)
        source = find_task(task.removeprefix(CHAT))
        samples = source.samples(n, tokens - form.num_template_tokens, seed, tokenizer)
        return [form.prompt(sample) for sample in samples]

    @torch.no_grad()
    def answers(self, task: str, prompt: Prompt) -> list[Answer]:
        """One for each variant and kept part; none where the whole cache is wrong."""
        read = ReadPrompt.read(self.checkpoint.model, prompt.ids)
        said = self._right_answer(prompt, read)
        if not said:
            return []
        window = ReadWindow.from_prompt(read, prompt.ids)
        full = _log_likelihood(read.answer(said, FullAttention(read)), said)
        found = []
        for variant in self.variants:
            after = self._template_end(task) if variant.before_end else 0
            scores = self.scores[variant.scores]
            for part in KEPT:
                settings = Settings(keep_ratio=part, **variant.settings)
                kept = window.kept(scores, settings, variant.block_size, after)
                logits = read.answer(said, KeptAttention(read, kept))
                same = logits.argmax(-1).tolist() == list(said)
                loss = full - _log_likelihood(logits, said)
                found.append(Answer(task, prompt.sample.id, variant.name, part, same, loss))
        return found

    def _right_answer(self, prompt: Prompt, read: ReadPrompt) -> tuple[int, ...]:
        """The whole cache's answer, up to where it is as right as it gets; none if it is wrong."""
        sample, decode = prompt.sample, self.checkpoint.tokenizer.decode
        metric = METRICS[find_task(sample.task).metric]
        said = read.generate(sample.max_new_tokens, self.checkpoint.stop_ids)
        best = metric(sample, decode(said))
        if best == 0:
            return ()
        right = (n for n in range(1, len(said) + 1) if metric(sample, decode(said[:n])) == best)
        return said[: next(right)]

    def _template_end(self, task: str) -> int:
        """How many tokens the chat template puts after a message."""
        if not task.startswith(CHAT):
            return 0
        tokenizer, message = self.checkpoint.tokenizer, "message"
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        return len(tokenizer.encode(chat.rpartition(message)[2], add_special_tokens=False))


def score_files(model: Path) -> dict[str, Path]:
    """A score file for each method of `headkv score`; makes those that are not there."""
    SCORES.mkdir(parents=True, exist_ok=True)
    files = {method: SCORES / f"{method}.json" for method in METHODS}
    for method, file in files.items():
        if not file.exists():
            command = [str(Path(sys.executable).with_name("headkv")), "score", str(model)]
            subprocess.run([*command, "--method", method, "--out", str(file)], check=True)
    return files


def read_scores(files: Mapping[str, Path]) -> dict[str, FloatArray]:
    """Scores of KV heads [L, H] with a sum of 1, by name; grad+r2 is the mean of the two."""
    found = {}
    for name, path in files.items():
        file = read_score_file(path)
        folded = fold_query_heads(file.values, file.model.identity.num_kv_heads, "mean")
        found[name] = folded / folded.sum()
    return {**found, "grad+r2": (found["grad"] + found["r2"]) / 2}


def _log_likelihood(logits: torch.Tensor, said: Sequence[int]) -> float:
    return float(logits.log_softmax(-1)[range(len(said)), list(said)].sum())


def write(answers: Sequence[Answer], variants: Sequence[Variant], out: Path) -> None:
    """The page: a row for each variant, over all tasks and for each task."""
    tasks = list(dict.fromkeys(answer.task for answer in answers))
    rows = []
    for variant in variants:
        row: dict[str, Any] = {"variant": variant.name}
        for part in KEPT:
            found = {
                task: [
                    answer
                    for answer in answers
                    if (answer.task, answer.variant, answer.kept) == (task, variant.name, part)
                ]
                for task in tasks
            }
            same = {task: 100 * mean(one.same for one in own) for task, own in found.items()}
            loss = [mean(one.loss for one in own) for own in found.values()]
            row[f"same at {part:.3g}"] = f"{mean(same.values()):.0f}"
            row[f"loss at {part:.3g}"] = f"{mean(loss):.2f}"
        # The last part is the smallest.
        row |= {f"{task} at {part:.3g}": f"{number:.0f}" for task, number in same.items()}
        rows.append(row)
    prompts = {(answer.task, answer.prompt) for answer in answers}
    counts = ", ".join(f"{task} {sum(one == task for one, _ in prompts)}" for task in tasks)
    notes = [
        f"Prompts that the whole cache answers rightly: {counts}. `same`: the part of them, in "
        "percent, whose answer stays the same token for token; `loss`: how much less likely the "
        "answer becomes, in nats. Means of the tasks' means. Each row changes the defaults by "
        "what it names."
    ]
    title = "Which settings keep a real model's answers?"
    Report("ablation", title, command_line("ablation"), rows, bars=(), notes=notes).write(out)


if __name__ == "__main__":
    typer.run(main)

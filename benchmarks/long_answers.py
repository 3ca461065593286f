# SPDX-License-Identifier: Apache-2.0
"""What long answers remember: facts asked after many generated tokens, with a bounded cache.

A real model reads a fact, in its prompt or in its own answer, and is told at the end of its prompt
to keep it in mind. Then it generates a long text, and completes a sentence that asks for the fact.
The text is the same for all settings: it is forced as output, token by token, so it goes through
the same steps as an answer of the model's own.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console

from benchmarks.harness.report import RESULTS, Out, Report, command_line
from headkv_vllm.evaluation.summary import bootstrap_interval
from headkv_vllm.evaluation.tasks.ruler.filler import Sentences, names, numbers, prose, spread
from headkv_vllm.evaluation.tasks.ruler.task import find_haystack
from headkv_vllm.output.files import complete_lines, drop_cut_line
from headkv_vllm.output.progress import JobProgress

QUESTION: Final = "What do long answers remember, if requests are compressed while they generate?"
BLOCK_SIZE: Final = 16
NUM_FREE_TOKENS: Final = 12
"""What the model generates after the forced text."""
PROMPT_WORDS: Final = {"in the prompt": 700, "in the answer": 350}
"""By where the fact is: the words of the prompt's text."""
WORDS_BEFORE_FACT: Final = 150
"""Of the answer, if the fact is in it."""


@dataclass(frozen=True)
class Sample:
    """prompt: text. forced: the text of the answer, up to what is asked for. value: the fact."""

    where: str
    prompt: str
    forced: str
    value: str


@dataclass(frozen=True)
class Setting:
    """policy, budget, every: of a request, in tokens; a budget of 0 keeps everything."""

    policy: str
    budget: int
    every: int

    @property
    def arguments(self) -> dict[str, Any]:
        """The request's `vllm_xargs`."""
        every = {"headkv_compress_every": self.every, "headkv_policy": self.policy}
        return {"headkv_budget": self.budget, **(every if self.budget else {})}

    def __str__(self) -> str:
        return f"{self.policy} {self.budget}" if self.budget else "full"


EVERY: Final = 128
SETTINGS: Final = (
    Setting("headkv", 0, 0),
    *(Setting("headkv", budget, EVERY) for budget in (384, 256, 128)),
    *(Setting("uniform", budget, EVERY) for budget in (384, 256, 128)),
    Setting("streaming", 384, EVERY),
)


def samples(where: str, number: int, words: int, seed: int) -> Iterator[Sample]:
    """words: of the text between the fact and the question."""
    haystack = find_haystack(None)
    for index in range(number):
        rng = np.random.default_rng([seed, index, where == "in the answer"])
        text = Sentences(prose(haystack, rng))
        key, value = next(names(rng)), next(numbers(rng))
        fact = f"The secret number of {key} is {value}."
        size = PROMPT_WORDS[where]
        parts = text(size + WORDS_BEFORE_FACT + words)
        num_parts = len(text(size))
        prompt, answer = parts[:num_parts], parts[num_parts:]
        if where == "in the prompt":
            prompt = spread(prompt, [fact], [float(rng.uniform())])
        else:
            answer.insert(len(text(size + WORDS_BEFORE_FACT)) - num_parts, fact)
        forced = f" {' '.join(answer)}\n\nThe secret number of {key} is"
        note = f"\n\nKeep in mind the secret number of {key}."
        told = f"Continue this text.\n\n{' '.join(prompt)}{note}"
        yield Sample(where, told, forced, value)


@dataclass(frozen=True)
class Answer:
    """One request. text: what follows the forced tokens. num_prompt, num_forced: in tokens."""

    where: str
    index: int
    setting: str
    right: bool
    text: str
    num_prompt: int
    num_forced: int


def ask(llm: Any, asked: list[tuple[int, Sample]]) -> Iterator[Answer]:
    """All samples with all settings, in one batch."""
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    base = SamplingParams(temperature=0, ignore_eos=True)
    prompts, parameters, about = [], [], []
    for index, sample in asked:
        ids = tokenizer(sample.prompt)["input_ids"]
        forced = tokenizer(sample.forced, add_special_tokens=False)["input_ids"]
        for setting in SETTINGS:
            own = base.clone()
            own.max_tokens = len(forced) + NUM_FREE_TOKENS
            own.extra_args = {**setting.arguments, "headkv_forced_tokens": forced}
            prompts.append({"prompt_token_ids": ids})
            parameters.append(own)
            about.append((index, sample, setting, len(ids), len(forced)))
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    for output, (index, sample, setting, num_prompt, num_forced) in zip(
        outputs, about, strict=True
    ):
        text = tokenizer.decode(output.outputs[0].token_ids[num_forced:])
        right = sample.value in text
        yield Answer(sample.where, index, str(setting), right, text, num_prompt, num_forced)


def main(
    model: Annotated[Path, typer.Argument(help="The checkpoint's folder: scripts/real-model.")],
    n: Annotated[int, typer.Option("-n", min=2, help="Samples of each kind.")] = 12,
    words: Annotated[
        int, typer.Option(help="Between a fact in the answer and the question.")
    ] = 700,
    at_once: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 6,
    seed: int = 0,
    work: Annotated[Path, typer.Option(help="For all answers.")] = Path(".cache/long-answers"),
    out: Out = RESULTS,
) -> None:
    """Ask SmolLM2 with a whole and with a bounded cache. Takes half an hour on two cores.

    What was answered before is not asked again.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    console = Console(stderr=True)
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"answers-{n}-{words}-{seed}.jsonl"
    path.touch()
    lines = complete_lines(path)
    drop_cut_line(path, lines)
    answers = [Answer(**json.loads(line)) for line in lines]
    known = {(one.where, one.index) for one in answers}
    missing = [
        (index, sample)
        for where in PROMPT_WORDS
        for index, sample in enumerate(samples(where, n, words, seed))
        if (where, index) not in known
    ]
    if missing:
        llm = start(model)
        batches = iter(missing)
        with JobProgress(console, [1] * len(missing)) as progress, path.open("a") as file:
            while batch := list(islice(batches, at_once)):
                for answer in ask(llm, batch):
                    answers.append(answer)
                    file.write(json.dumps(asdict(answer)) + "\n")
                file.flush()
                for _ in batch:
                    progress.advance()
    write(answers, out)


def start(model: Path) -> Any:
    """The engine, in this process."""
    from vllm import LLM

    return LLM(
        model=str(model),
        attention_backend="HEADKV",
        dtype="float32",
        enforce_eager=True,
        block_size=BLOCK_SIZE,
        max_model_len=4096,
        max_num_seqs=64,
        kv_cache_memory_bytes=2**32,
        logits_processors=["headkv_vllm.engine.forced_tokens:ForcedTokens"],
        additional_config={"headkv": {"budget": 512}},
    )


def write(answers: list[Answer], out: Path) -> None:
    """The report: for each place of the fact and each setting, the right answers."""
    rows = []
    for where in PROMPT_WORDS:
        here = [one for one in answers if one.where == where]
        full = {one.index: float(one.right) for one in here if one.setting == "full"}
        for setting in map(str, SETTINGS):
            own = {one.index: float(one.right) for one in here if one.setting == setting}
            row: dict[str, Any] = {
                "fact": where,
                "setting": setting,
                "right %": 100 * mean(own.values()),
                "against full": "",
                "n": len(own),
                "prompt tokens": mean(one.num_prompt for one in here),
                "answer tokens": mean(one.num_forced for one in here),
            }
            if setting != "full":
                found = bootstrap_interval([own[i] - full[i] for i in sorted(own)], seed=0)
                bounds = f"{100 * found.low:+.0f} to {100 * found.high:+.0f}"
                row["against full"] = f"{100 * found.mean:+.0f} ({bounds})"
            rows.append(row)
    notes = [
        f"Settings: policy and budget, compressed again every {EVERY} tokens. The fact is a number "
        "of seven digits. The answer's tokens are counted up to the question. Intervals are of "
        "paired differences, 95 %.",
    ]
    Report("long_answers", QUESTION, command_line("long_answers"), rows, [], notes).write(out)


if __name__ == "__main__":
    typer.run(main)

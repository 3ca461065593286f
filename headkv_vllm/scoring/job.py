# SPDX-License-Identifier: Apache-2.0
"""`headkv score` from the request to the file: load, ask, measure with a progress bar, write."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from headkv_vllm.errors import ModelError, SamplesError
from headkv_vllm.scores.file import Provenance, ScoredModel, ScoreFile, write_score_file
from headkv_vllm.scoring.checkpoint import Checkpoint, load_checkpoint
from headkv_vllm.scoring.journal import Journal, SampleResult
from headkv_vllm.scoring.prompts import PromptTokens, template_length, tokenize
from headkv_vllm.scoring.request import Hardware, ScoreRequest
from headkv_vllm.scoring.run import ScoreRun, accepted, mean_scores
from headkv_vllm.version import tool_version

ROOM_FOR_ANSWER = 32
"""Part of a built-in sample's length, so that a length of all the model's positions can be had."""


def run_job(
    request: ScoreRequest, hardware: Hardware, *, allow_few: bool, restart: bool, console: Console
) -> ScoreFile:
    """Measure what `request` asks for and write its score file.

    Results are kept beside the file until it is written, see `Journal`. Raises HeadKVError, one
    line, when something cannot be used; KeyboardInterrupt leaves the results that are done.
    """
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    console.print(f"loading {request.model}", highlight=False)
    checkpoint = load_checkpoint(
        request.model,
        revision=request.revision,
        device=hardware.device,
        dtype=hardware.dtype,
    )
    run = prepare(request, checkpoint)
    journal = measure_all(run, _open_journal(request.out, run, restart=restart), console)
    file = score_file(request, run, journal, allow_few=allow_few)
    write_score_file(request.out, file)
    journal.remove()
    return file


def prepare(request: ScoreRequest, checkpoint: Checkpoint) -> ScoreRun:
    """All prompts of `request` in the checkpoint's tokens.

    Raises SamplesError, and ModelError when the tokenizer is of another model.
    """
    tokenizer = checkpoint.tokenizer
    samples = request.source.samples(
        request.method,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        template_length(tokenizer, request.template) + ROOM_FOR_ANSWER,
    )
    prompts = tuple(tokenize(sample, tokenizer, request.template) for sample in samples)
    for number, prompt in enumerate(prompts, start=1):
        _check_fits(number, prompt, checkpoint)
    answers = tuple(sample.answer for sample in samples)
    return ScoreRun(checkpoint, request.method, prompts, answers)


def measure_all(run: ScoreRun, journal: Journal, console: Console) -> Journal:
    """The complete journal of `run`, with a progress bar on `console`; see `measure_rest`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[right]} answered"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    if journal.results:
        console.print(f"going on after {len(journal.results)} samples", highlight=False)
    right = len(accepted(journal.results))
    with Progress(*columns, console=console) as progress:
        done, total = len(journal.results), len(run.prompts)
        task = progress.add_task("samples", total=total, completed=done, right=right)

        def show(result: SampleResult) -> None:
            nonlocal right
            right += len(accepted([result]))
            progress.update(task, advance=1, right=right)

        return run.measure_rest(journal, show)


def score_file(
    request: ScoreRequest, run: ScoreRun, journal: Journal, *, allow_few: bool = False
) -> ScoreFile:
    """The score file of a complete run. Raises ScoringError, see `mean_scores`."""
    scores = mean_scores(journal.results, allow_few=allow_few)
    return ScoreFile(
        schema_version=1,
        model=ScoredModel(name=request.name, identity=run.checkpoint.identity),
        method=request.method,
        provenance=Provenance(
            tool_version=tool_version(),
            seed=request.source.seed,
            num_samples=len(run.prompts),
            num_accepted=len(accepted(journal.results)),
            lengths=tuple(sorted({len(prompt.ids) for prompt in run.prompts})),
            data=request.source.description,
            template=request.template.text,
            chat=request.template.chat,
            dtype=str(run.checkpoint.model.dtype).removeprefix("torch."),
        ),
        scores=tuple(tuple(row) for row in scores.tolist()),
    )


def _open_journal(out: Path, run: ScoreRun, *, restart: bool) -> Journal:
    path = Journal.beside(out)
    if restart:
        path.unlink(missing_ok=True)
    return Journal.resume(path, run.describe())


def _check_fits(number: int, prompt: PromptTokens, checkpoint: Checkpoint) -> None:
    needed, most = len(prompt.ids) + len(prompt.answer_ids), checkpoint.max_tokens
    if needed > most:
        raise SamplesError(
            f"sample {number} takes {needed} tokens with its answer, the model's positions end at "
            f"{most}: give shorter --lengths or texts"
        )
    vocabulary = checkpoint.model.get_input_embeddings().num_embeddings
    if max(prompt.ids) >= vocabulary:
        raise ModelError(
            f"the tokenizer makes token {max(prompt.ids)}, the model knows {vocabulary}: they do "
            "not belong together"
        )

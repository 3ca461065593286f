# SPDX-License-Identifier: Apache-2.0
"""`headkv score` from the request to the file: load, ask, measure with a progress bar, write."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
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
SPEED_PERIOD = 3600.0
"""Seconds by which the time that is left is estimated."""


def run_job(
    request: ScoreRequest, hardware: Hardware, *, allow_few: bool, restart: bool, console: Console
) -> ScoreFile:
    """Measure what `request` asks for and write its score file.

    Results are kept beside the file until it is written, see `Journal`. Raises HeadKVError, one
    line, when something cannot be used; KeyboardInterrupt leaves the results that are done.
    """
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    console.print(f"loading {request.model}", highlight=False, markup=False)
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
    _check_lengths(request, checkpoint)
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
    if journal.results:
        console.print(f"going on after {len(journal.results)} samples", highlight=False)
    lengths = [len(prompt.ids) for prompt in run.prompts]
    done, right = len(journal.results), len(accepted(journal.results))
    with _progress(console, len(lengths)) as progress:
        task = progress.add_task(
            "samples", total=sum(lengths), completed=sum(lengths[:done]), done=done, right=right
        )

        def show(result: SampleResult) -> None:
            nonlocal right
            right += len(accepted([result]))
            index = result.index
            progress.update(task, advance=lengths[index], done=index + 1, right=right)

        return run.measure_rest(journal, show)


def _progress(console: Console, num_samples: int) -> Progress:
    """Counts tokens, which samples of different lengths differ in, and shows samples."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.fields[done]}}/{num_samples}"),
        TextColumn("{task.fields[right]} answered"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        # By default rich forgets what is older, and a sample can take longer than that.
        speed_estimate_period=SPEED_PERIOD,
    )


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
        Journal(path).remove()
    return Journal.resume(path, run.describe())


def _check_lengths(request: ScoreRequest, checkpoint: Checkpoint) -> None:
    """Before samples are made, which takes as long as they are."""
    longest = max(request.source.lengths, default=0)
    if longest > checkpoint.max_tokens:
        raise SamplesError(
            f"--lengths has {longest}, the model's positions end at {checkpoint.max_tokens}"
        )


def _check_fits(number: int, prompt: PromptTokens, checkpoint: Checkpoint) -> None:
    needed, most = len(prompt.ids) + len(prompt.answer_ids), checkpoint.max_tokens
    if needed > most:
        raise SamplesError(
            f"sample {number} takes {needed} tokens with its answer, the model's positions end at "
            f"{most}: give shorter texts (--lengths)"
        )
    vocabulary = checkpoint.model.get_input_embeddings().num_embeddings
    if max(prompt.ids) >= vocabulary:
        raise ModelError(
            f"the tokenizer makes token {max(prompt.ids)}, the model knows {vocabulary}: they do "
            "not belong together"
        )

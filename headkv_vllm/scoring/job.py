# SPDX-License-Identifier: Apache-2.0
"""Runs `headkv score`: loads the model, makes the prompts, measures them, writes the file."""

from pathlib import Path

import torch
from rich.console import Console

from headkv_vllm.errors import ModelError, SamplesError
from headkv_vllm.head_scores.file import Provenance, ScoredModel, ScoreFile, write_score_file
from headkv_vllm.output.progress import JobProgress
from headkv_vllm.scoring.checkpoint import Checkpoint, load_checkpoint
from headkv_vllm.scoring.journal import Journal, SampleResult
from headkv_vllm.scoring.measuring import MAX_EXTRA_TOKENS
from headkv_vllm.scoring.prompts import PromptTokens, template_length, tokenize
from headkv_vllm.scoring.request import Hardware, ScoreRequest
from headkv_vllm.scoring.run import ScoreRun, accepted
from headkv_vllm.version import tool_version

ROOM_FOR_ANSWER = 32
"""Tokens of a built-in sample's length that are reserved for the answer, so that the length may be
all of the model's positions. A generated answer takes `MAX_EXTRA_TOKENS` more."""


def run_job(
    request: ScoreRequest, hardware: Hardware, *, allow_few: bool, restart: bool, console: Console
) -> ScoreFile:
    """Measure what `request` asks for and write its score file.

    Results are kept beside the file until it is written, see `Journal`. Raises HeadKVError, one
    line, when something cannot be used. After KeyboardInterrupt the finished results stay on disk.
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
    journal = _open_journal(request.out, run, restart=restart)
    journal = measure_all(run, journal, console, allow_few=allow_few)
    file = score_file(request, run, journal, allow_few=allow_few)
    write_score_file(request.out, file)
    journal.remove()
    return file


def prepare(request: ScoreRequest, checkpoint: Checkpoint) -> ScoreRun:
    """All prompts of `request` in the checkpoint's tokens.

    Raises SamplesError, and ModelError when the tokenizer belongs to another model.
    """
    _check_lengths(request, checkpoint)
    tokenizer = checkpoint.tokenizer
    template = request.template.settled(tokenizer)
    room = MAX_EXTRA_TOKENS if request.answers == "generated" else 0
    samples = request.source.samples(
        request.method,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        template_length(tokenizer, template) + ROOM_FOR_ANSWER + room,
    )
    prompts = tuple(tokenize(sample, tokenizer, template) for sample in samples)
    for number, prompt in enumerate(prompts, start=1):
        _check_fits(number, prompt, room, checkpoint)
    return ScoreRun(
        checkpoint,
        request.method,
        request.answers,
        template,
        prompts,
        expected=tuple(sample.answer for sample in samples),
    )


def measure_all(
    run: ScoreRun, journal: Journal, console: Console, *, allow_few: bool = False
) -> Journal:
    """The complete journal of `run`, with progress on `console`; see `ScoreRun.measure_rest`."""
    if journal.results:
        console.print(f"continuing after {len(journal.results)} samples", highlight=False)
    lengths = [len(prompt.ids) for prompt in run.prompts]
    num_accepted = len(accepted(journal.results))
    progress = JobProgress(console, lengths, len(journal.results), f"{num_accepted} count")

    def show(result: SampleResult) -> None:
        nonlocal num_accepted
        num_accepted += len(accepted([result]))
        progress.advance(f"{num_accepted} count")

    with progress:
        progress.say("samples")
        return run.measure_rest(journal, show, allow_few=allow_few)


def score_file(
    request: ScoreRequest, run: ScoreRun, journal: Journal, *, allow_few: bool = False
) -> ScoreFile:
    """The score file of a complete run. Raises ScoringError, see `ScoreRun.mean_scores`."""
    scores = run.mean_scores(journal.results, allow_few=allow_few)
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
            template=run.template.text,
            chat=run.template.chat,
            answers=run.answers,
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
    """Check before samples are made, because long samples take long to make."""
    longest = max(request.source.lengths, default=0)
    if longest > checkpoint.max_tokens:
        raise SamplesError(
            f"--lengths has {longest}, the model's positions end at {checkpoint.max_tokens}"
        )


def _check_fits(number: int, prompt: PromptTokens, room: int, checkpoint: Checkpoint) -> None:
    needed = len(prompt.ids) + len(prompt.answer_ids) + room
    if needed > checkpoint.max_tokens:
        raise SamplesError(
            f"sample {number} takes {needed} tokens with its answer, the model's positions end at "
            f"{checkpoint.max_tokens}: give shorter texts (--lengths)"
        )
    vocabulary = checkpoint.model.get_input_embeddings().num_embeddings
    if max(prompt.ids) >= vocabulary:
        raise ModelError(
            f"the tokenizer has token {max(prompt.ids)}, the model has {vocabulary} tokens: they "
            "do not belong together"
        )

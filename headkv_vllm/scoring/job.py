# SPDX-License-Identifier: Apache-2.0
"""`headkv score` from the request to the file: load, ask, measure, write."""

from pathlib import Path

import torch
from rich.console import Console

from headkv_vllm.errors import ModelError, SamplesError
from headkv_vllm.head_scores.file import Provenance, ScoredModel, ScoreFile, write_score_file
from headkv_vllm.scoring.checkpoint import Checkpoint, load_checkpoint
from headkv_vllm.scoring.journal import Journal
from headkv_vllm.scoring.measuring import ROOM_TO_TALK
from headkv_vllm.scoring.progress import SampleProgress
from headkv_vllm.scoring.prompts import PromptTokens, template_length, tokenize
from headkv_vllm.scoring.request import Hardware, ScoreRequest
from headkv_vllm.scoring.run import ScoreRun, accepted
from headkv_vllm.version import tool_version

ROOM_FOR_ANSWER = 32
"""Part of a built-in sample's length, so that a length of all the model's positions can be had; a
generated answer takes `ROOM_TO_TALK` besides."""


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
    journal = _open_journal(request.out, run, restart=restart)
    journal = measure_all(run, journal, console, allow_few=allow_few)
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
    template = request.template.settled(tokenizer)
    room = ROOM_TO_TALK if request.answers == "generated" else 0
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
        console.print(f"going on after {len(journal.results)} samples", highlight=False)
    lengths = [len(prompt.ids) for prompt in run.prompts]
    with SampleProgress(console, lengths, journal.results) as progress:
        return run.measure_rest(journal, progress.show, allow_few=allow_few)


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
    """Before samples are made, which takes as long as they are."""
    longest = max(request.source.lengths, default=0)
    if longest > checkpoint.max_tokens:
        raise SamplesError(
            f"--lengths has {longest}, the model's positions end at {checkpoint.max_tokens}"
        )


def _check_fits(number: int, prompt: PromptTokens, room: int, checkpoint: Checkpoint) -> None:
    needed, most = len(prompt.ids) + len(prompt.answer_ids) + room, checkpoint.max_tokens
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

# SPDX-License-Identifier: Apache-2.0
"""`python -m headkv_vllm.needle.score --out FILE`: score the heads by where the answers come from.

HeadKV (arXiv 2410.19258) scores a head by the attention it pays to the whole correct answer while
the answer is generated, not only to the one token that is copied next. The score here is that
attention mass: of the steps that say an entry of the answer, on the needles that the entry is
read from, averaged over steps and samples.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
import torch
import typer
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from headkv_vllm.needle.paths import checkpoint_path
from headkv_vllm.needle.tasks import TASKS, Sample, generate_samples
from headkv_vllm.needle.vocabulary import END
from headkv_vllm.scores.file import Provenance, ScoredModel, ScoreFile, write_score_file
from headkv_vllm.scores.identity import identify_checkpoint

METHOD: Final = "answer-mass"
LENGTHS: Final = (512, 1024)
SAMPLES_PER_CELL: Final = 4
SEED: Final = 1234
DECIMALS: Final = 6


@torch.inference_mode()
def answer_mass(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, sample: Sample
) -> npt.NDArray[np.float64]:
    """Mean attention of every query head on the answer's needles in the answer's steps.

    Needs a model with `attn_implementation="eager"`, which returns attention weights.

    Returns:
        `[num_layers, num_heads]`, each within 0 to 1.
    """
    ids = tokenizer(f"{sample.prompt} {sample.answer}", return_tensors="pt").input_ids
    attentions = model(ids, output_attentions=True, use_cache=False).attentions
    weights = torch.stack([layer[0] for layer in attentions])
    per_step = [
        weights[:, :, step, start:end].sum(-1)
        for step, spans in answer_steps(sample)
        for start, end in spans
    ]
    num_steps = sum(1 for _ in answer_steps(sample))
    return (torch.stack(per_step).double().sum(0) / num_steps).numpy()


def answer_steps(sample: Sample) -> Iterable[tuple[int, tuple[tuple[int, int], ...]]]:
    """Each step that says something read from needles, and the spans of those needles.

    A step is the position of the token that predicts: within `key value .. value ;` all tokens but
    the last, for they predict what stands after the key.
    """
    hops = len(sample.spans) // len(sample.keys)
    entry = 0
    for offset, word in enumerate(sample.answer.split()):
        if word == END:
            entry += 1
        else:
            yield sample.num_tokens + offset, sample.spans[entry * hops : (entry + 1) * hops]


def score_checkpoint(folder: Path, samples: Iterable[Sample]) -> npt.NDArray[np.float64]:
    """Mean `answer_mass` over the samples of the model in `folder`: `[num_layers, num_heads]`."""
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    per_sample = np.stack([answer_mass(model, tokenizer, sample) for sample in samples])
    mean: npt.NDArray[np.float64] = per_sample.mean(axis=0)
    return mean


def score_file(folder: Path) -> ScoreFile:
    """The scores of the checkpoint in `folder` over all tasks; the same every time."""
    samples = [
        sample
        for task in TASKS
        for tokens in LENGTHS
        for sample in generate_samples(task, tokens, SAMPLES_PER_CELL, SEED)
    ]
    scores = score_checkpoint(folder, samples).round(DECIMALS)
    return ScoreFile(
        schema_version=1,
        model=ScoredModel(name="needle", identity=identify_checkpoint(folder)),
        method=METHOD,
        provenance=Provenance(
            tool_version=_tool_version(),
            seed=SEED,
            num_samples=len(samples),
            lengths=LENGTHS,
            notes="mean attention mass on the answer's needles in the steps of the answer; "
            f"tasks: {', '.join(TASKS)}",
        ),
        scores=tuple(tuple(row) for row in scores.tolist()),
    )


def main(
    out: Annotated[Path, typer.Option(help="Score file to write.")],
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")] = checkpoint_path(),  # noqa: B008
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Score the heads of a needle model."""
    torch.set_num_threads(threads)
    write_score_file(out, score_file(model))


def _tool_version() -> str:
    try:
        return version("headkv-vllm")
    except PackageNotFoundError:
        return "unreleased"


if __name__ == "__main__":
    typer.run(main)

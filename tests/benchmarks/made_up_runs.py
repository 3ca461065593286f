# SPDX-License-Identifier: Apache-2.0
"""What `headkv eval` leaves in its folder, with scores that a test gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from headkv_vllm.evaluation.cells import Budget, CellCompression
from headkv_vllm.evaluation.prompts import PromptFormat, load_tokenizer, write_prompts
from headkv_vllm.evaluation.results import Result, ResultsFile, sample_digest
from headkv_vllm.evaluation.run_record import RunRecord
from headkv_vllm.evaluation.tasks import find_task
from headkv_vllm.needle import checkpoint_path

MODEL = str(checkpoint_path())


def made_up_run(
    folder: Path,
    tasks: Sequence[str],
    num_prompts: int,
    num_tokens: int,
    cells: Mapping[tuple[str, Budget], tuple[int, float]],
) -> Path:
    """cells: by policy and budget, the tokens kept of every prompt and its score."""
    depends_on = {"model": MODEL, "tokenizer": None, "settings": {"window": 16}, "chat": False}
    grid = {"compressions": [str(CellCompression(*compression)) for compression in cells]}
    record = RunRecord.now({**depends_on, "dtype": "float32"}, "headkv eval", grid, {"headkv": "s"})
    record.write_to(folder)
    tokenizer = load_tokenizer(MODEL)
    file = ResultsFile(folder / "results.jsonl", record.digest)
    prompts = []
    for task in tasks:
        samples = find_task(task).samples(num_prompts, num_tokens, 0, tokenizer, None)
        prompts += map(PromptFormat(tokenizer).prompt, samples)
    write_prompts(prompts, folder)
    for prompt in reversed(prompts):  # answers come in any order
        for (policy, budget), (kept, score) in reversed(cells.items()):
            sample = prompt.sample
            file.append(
                Result(
                    run=record.digest,
                    task=sample.task,
                    length=num_tokens,
                    policy=policy,
                    budget=budget,
                    id=sample.id,
                    sample=sample_digest(sample),
                    score=score,
                    text="",
                    depth=None,
                    num_prompt_tokens=num_tokens,
                    num_output_tokens=1,
                    kept_bytes=kept,
                    full_bytes=num_tokens,
                    kept_tokens=float(kept),
                )
            )
    return folder

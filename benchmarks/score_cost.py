# SPDX-License-Identifier: Apache-2.0
"""What a sample of `headkv score` costs: time and memory, beside a plain read of its prompt.

The weights are random: neither depends on their values. Nothing is downloaded. On a machine that
is not idle only the CPU seconds (of all threads) say what the work costs.
"""

import os
import platform
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from headkv_vllm.needle import checkpoint_path
from headkv_vllm.scoring.attention_rows import ATTENTION
from headkv_vllm.scoring.attention_scores import METHODS, Method
from headkv_vllm.scoring.measuring import measure
from headkv_vllm.scoring.prompts import PromptTokens
from headkv_vllm.scoring.request import parse_method

SHAPES: Final = {
    "qwen2.5-0.5b": Qwen2Config(
        num_hidden_layers=24,
        hidden_size=896,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "needle": LlamaConfig.from_pretrained(checkpoint_path()),
}
DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SEED: Final = 0
MIB: Final = 1024**2
RESET_PEAK: Final = Path("/proc/self/clear_refs")
"""Linux forgets the peak of resident memory when 5 is written here: making a model takes more."""
COLUMNS: Final = (
    *("model", "dtype", "method", "prompt", "answer", "sample, s", "its CPU, s"),
    *("plain prefill, s", "its CPU, s", "peak memory, MiB", "weights, MiB"),
)


def main(
    shape: Annotated[str, typer.Argument(help=f"One of {', '.join(SHAPES)}.")] = "qwen2.5-0.5b",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the prompt.")] = 4096,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Steps of the answer.")] = 16,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "float32",
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "grad",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure one sample on a random model of SHAPE and print a line of a markdown table."""
    _check(shape, SHAPES)
    _check(dtype, DTYPES)
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    model = random_model(SHAPES[shape], DTYPES[dtype])
    ids = torch.randint(model.config.vocab_size, (tokens,))
    known_method = parse_method(method)
    # The first call takes time that later ones do not.
    seconds_of_sample(model, ids[:2], 1, known_method)
    RESET_PEAK.write_text("5")
    sample = seconds_of_sample(model, ids, answer_tokens, known_method)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    prefill = seconds_of_prefill(model, ids)
    weights = sum(weight.nbytes for weight in model.parameters()) / MIB
    seconds = [f"{value:.1f}" for value in (*sample, *prefill)]
    print(f"{describe_machine()}; {threads} thread(s); load {os.getloadavg()[0]:.1f}\n")
    print_row(COLUMNS)
    print_row(["---"] * len(COLUMNS))
    print_row(
        [shape, dtype, method, tokens, answer_tokens, *seconds, f"{peak:.0f}", f"{weights:.0f}"]
    )


def random_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model of `config` with random weights."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    return model.eval().requires_grad_(False)


def seconds_of_sample(
    model: PreTrainedModel, ids: torch.Tensor, answer_tokens: int, method: Method
) -> tuple[float, float]:
    """Wall and CPU time of `measure`, evidence being a tenth of the prompt."""
    tokens = len(ids)
    evidence = tuple(range(tokens // 2, tokens // 2 + max(1, tokens // 10)))
    prompt = PromptTokens(tuple(ids.tolist()), evidence, (0,) * answer_tokens)
    start, cpu = time.perf_counter(), time.process_time()
    measured = measure(model, prompt, method, "forced", frozenset())
    seconds = time.perf_counter() - start, time.process_time() - cpu
    assert len(measured.answer) == answer_tokens
    return seconds


@torch.inference_mode()
def seconds_of_prefill(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, float]:
    """Wall and CPU time of one pass over the whole prompt with transformers' own sdpa attention."""
    model.set_attn_implementation("sdpa")
    start, cpu = time.perf_counter(), time.process_time()
    model(ids[None], use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start, time.process_time() - cpu


def describe_machine() -> str:
    """CPU model, number of cores, and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__}"


def print_row(cells: Iterable[object]) -> None:
    """One line of a markdown table."""
    print("|", " | ".join(map(str, cells)), "|")


def _check(name: str, allowed: dict[str, Any]) -> None:
    if name not in allowed:
        raise typer.BadParameter(f"{name!r}, allowed are {', '.join(allowed)}")


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""kvpress's answers; runs in its environment, where nothing of this project is installed.

Usage: python kvpress_side.py REQUEST, a JSON file of `model`, `prompts` and `answers` (paths),
`batch_size`, and `jobs`: for each what `Theirs.arguments` says, and its `run`. One line is printed
for every batch: how many answers there are.
"""

import json
import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from kvpress import AdaKVPress, BasePress, PyramidKVPress, SnapKVPress, StreamingLLMPress
from transformers import DynamicCache, LlamaForCausalLM


def press_of(job: dict[str, Any]) -> BasePress:
    """The press as kvpress makes it, with the job's settings."""
    ratio, window, kernel = (
        job[name] for name in ("compression_ratio", "window_size", "kernel_size")
    )
    if job["press"] == "streaming":
        return StreamingLLMPress(compression_ratio=ratio, n_sink=job["n_sink"])
    snapkv = {"compression_ratio": ratio, "window_size": window, "kernel_size": kernel}
    if job["press"] == "pyramidkv":
        return PyramidKVPress(**snapkv, beta=job["beta"])
    return AdaKVPress(SnapKVPress(**snapkv)) if job["press"] == "adakv" else SnapKVPress(**snapkv)


@dataclass
class Prefill:
    """Prompts of one length, read with full attention, as kvpress reads them.

    calls: what transformers hands the forward hook of each attention layer. A press changes the
    cache only after its layer has used it, so one reading serves all presses.
    """

    num_tokens: int
    logits: torch.Tensor
    cache: DynamicCache
    calls: list[tuple[Any, ...]] = field(default_factory=list)


def read_prompts(model: LlamaForCausalLM, ids: torch.Tensor) -> Prefill:
    """ids: [batch, num_tokens]."""
    cache, calls, hooks = DynamicCache(), [], []
    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb
        hook = layer.self_attn.register_forward_hook(
            lambda *call: calls.append(call), with_kwargs=True
        )
        hooks.append(hook)
    out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return Prefill(ids.shape[1], out.logits[:, -1], cache, calls)


def compress(prefill: Prefill, press: BasePress) -> DynamicCache:
    """A copy of the cache that `press` has compressed by its own forward hook."""
    cache = deepcopy(prefill.cache)
    for module, positional, named, output in prefill.calls:
        module.masked_key_indices = None
        press.forward_hook(module, positional, {**named, "past_key_values": cache}, output)
    return cache


def count_kept(prefill: Prefill, cache: DynamicCache) -> torch.Tensor:
    """Prompt tokens of each head that can be seen from now on: [batch, layer, KV head].

    What AdaKVPress drops stays in the cache, and is masked.
    """
    counts = []
    for (module, *_), layer in zip(prefill.calls, cache.layers, strict=True):
        batch, num_kv_heads, length, _ = layer.keys.shape
        seen = torch.ones(batch, num_kv_heads, length, dtype=torch.long)
        if module.masked_key_indices is not None:
            seen[module.masked_key_indices] = 0
        counts.append(seen.sum(-1))
    return torch.stack(counts, 1)


def generate(
    model: LlamaForCausalLM, prefill: Prefill, cache: DynamicCache, max_tokens: int
) -> list[list[int]]:
    """Greedy answers, each up to and without the end token."""
    tokens = [prefill.logits.argmax(-1)]
    while len(tokens) < max_tokens:
        # Not left to the cache, whose length is no longer the text's.
        position = prefill.num_tokens + len(tokens) - 1
        positions = torch.full((len(tokens[-1]), 1), position)
        out = model(tokens[-1][:, None], past_key_values=cache, position_ids=positions)
        tokens.append(out.logits[:, -1].argmax(-1))
    return [up_to(answer, model.config.eos_token_id) for answer in torch.stack(tokens, 1).tolist()]


def up_to(tokens: list[int], end: int) -> list[int]:
    """`tokens` before the first `end`."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


def batches(
    prompts: list[dict[str, Any]], batch_size: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Prompts of the same task and length together; with their number of tokens."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for prompt in prompts:
        groups.setdefault((prompt["task"], len(prompt["ids"])), []).append(prompt)
    for (_, num_tokens), group in groups.items():
        for start in range(0, len(group), batch_size):
            yield num_tokens, group[start : start + batch_size]


def answer(
    model: LlamaForCausalLM, prefill: Prefill, batch: list[dict[str, Any]], job: dict[str, Any]
) -> list[dict[str, Any]]:
    """One result for each prompt of `batch`; they keep what `job` says, or this raises."""
    cache = compress(prefill, press_of(job))
    kept = count_kept(prefill, cache)
    if not (kept.double().mean((1, 2)) == job["num_kept"]).all():
        raise SystemExit(f"error: {job} keeps {kept.double().mean((1, 2)).tolist()} tokens")
    texts = generate(model, prefill, cache, max(prompt["max_tokens"] for prompt in batch))
    return [
        {"run": job["run"], "id": prompt["id"], "ids": ids[: prompt["max_tokens"]], "kept": heads}
        for prompt, ids, heads in zip(batch, texts, kept.tolist(), strict=True)
    ]


@torch.inference_mode()
def main(path: str) -> None:
    """All that the request asks for and the answers' file does not have."""
    with open(path) as stream:
        request = json.load(stream)
    with open(request["prompts"]) as stream:
        prompts = [json.loads(line) for line in stream]
    with open(request["answers"], "a+") as stream:
        stream.seek(0)
        done = {(one["run"], one["id"]) for one in map(json.loads, stream)}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    # AdaKVPress masks by an attention function that is not the eager one.
    model = LlamaForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    for num_tokens, batch in batches(prompts, request["batch_size"]):
        jobs = [
            job
            for job in request["jobs"]
            if job["num_tokens"] == num_tokens
            and not all((job["run"], prompt["id"]) in done for prompt in batch)
        ]
        if not jobs:
            continue
        prefill = read_prompts(model, torch.tensor([prompt["ids"] for prompt in batch]))
        for job in jobs:
            results = answer(model, prefill, batch, job)
            with open(request["answers"], "a") as stream:
                stream.writelines(f"{json.dumps(result)}\n" for result in results)
            print(len(results), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

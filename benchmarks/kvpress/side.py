# SPDX-License-Identifier: Apache-2.0
"""kvpress's answers; runs in its environment, where nothing of this project is installed.

Usage: python side.py REQUEST, a JSON file with `model`, `dtype`, `window`, `kernel_size`, `chat`;
`prompts`, for each `digest`, `ids`, `max_tokens`, `presses` (names of `presses_of`) and `kept`, the
numbers of tokens that a KV head keeps on average; and `answers`, the path of the file that grows by
a line for each prompt, press and number. One line is printed for every prompt.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from math import floor, nextafter
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvpress import (
    AdaKVPress,
    BasePress,
    CriticalAdaKVPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KVzipPress,
    PyramidKVPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from kvpress.presses import kvzip_press

Masked = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Rows, KV heads and places of entries that no query sees."""
Answer = dict[str, Any]
ROWS_PER_BATCH = 8


def presses_of(window: int, kernel_size: int) -> dict[str, Callable[[float], BasePress]]:
    """Each press by name, made for a compression ratio.

    Those that look at a window of queries get ours; `snapkv_64` is SnapKVPress as kvpress has it.
    """
    ours = {"window_size": window, "kernel_size": kernel_size}
    return {
        "snapkv": lambda ratio: SnapKVPress(ratio, **ours),
        "snapkv_64": SnapKVPress,
        "adakv": lambda ratio: AdaKVPress(SnapKVPress(ratio, **ours)),
        "critical_adakv": lambda ratio: CriticalAdaKVPress(SnapKVPress(ratio, **ours)),
        "pyramidkv": lambda ratio: PyramidKVPress(ratio, **ours),
        "tova": TOVAPress,
        "keydiff": KeyDiffPress,
        "expected": ExpectedAttentionPress,
        "ada_expected": lambda ratio: AdaKVPress(ExpectedAttentionPress(ratio, epsilon=1e-2)),
        "streaming": StreamingLLMPress,
        "kvzip": KVzipPress,
    }


@dataclass
class Prefill:
    """A prompt, read with full attention, as kvpress reads it.

    calls: what transformers hands the forward hook of each attention layer. A press changes the
    cache only after its layer has used it, so one reading serves all presses.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    cache: DynamicCache
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return self.ids.shape[1]

    def copy_of_cache(self) -> DynamicCache:
        """Presses put other tensors into a cache, and change none."""
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        return cache


@dataclass
class Compressed:
    """What a press keeps. cache: of one row. masked: for each layer, or None where nothing is."""

    cache: DynamicCache
    masked: list[Masked | None]

    def seen(self, layer: int) -> torch.Tensor:
        """The entries of `layer` that can be seen from now on: [KV head, place], true or false."""
        seen = torch.ones(self.cache.layers[layer].keys.shape[1:3], dtype=torch.bool)
        if self.masked[layer] is not None:
            _, heads, places = self.masked[layer]
            seen[heads, places] = False
        return seen

    @property
    def counts(self) -> torch.Tensor:
        """How many they are: [layer, KV head]."""
        return torch.stack([self.seen(i).sum(-1) for i in range(len(self.masked))])

    @property
    def num_bytes(self) -> int:
        """Of the cache, with what is masked."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def read_prompt(model: PreTrainedModel, ids: list[int]) -> Prefill:
    """Reads `ids` once for all presses."""
    tensor = torch.tensor([ids])
    cache, calls, hooks = DynamicCache(), [], []
    for module in attentions(model):
        module.rotary_emb = model.model.rotary_emb
        module.masked_key_indices = None
        hook = module.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
        hooks.append(hook)
    out = model(tensor, past_key_values=cache, use_cache=True, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return Prefill(tensor, out.logits[:, -1], cache, calls)


def attentions(model: PreTrainedModel) -> list[Any]:
    """The attention module of each layer."""
    return [layer.self_attn for layer in model.model.layers]


def compress(model: PreTrainedModel, prefill: Prefill, press: BasePress) -> Compressed:
    """What `press` makes of the cache, by its own forward hook."""
    press.post_init_from_model(model)
    cache, masked = prefill.copy_of_cache(), []
    for module, positional, named, output in prefill.calls:
        module.masked_key_indices = None
        press.forward_hook(module, positional, {**named, "past_key_values": cache}, output)
        masked.append(module.masked_key_indices)
        module.masked_key_indices = None
    return Compressed(cache, masked)


class KVzipForAll(KVzipPress):
    """KVzip's scores of one prompt, and what they come to at several ratios."""

    def compress_post(self, model: PreTrainedModel) -> None:
        """Called once, when all is scored."""
        self.of_ratio: dict[float, list[Masked | None]] = {}
        for ratio in self.ratios:
            self.compression_ratio = ratio
            super().compress_post(model)
            self.of_ratio[ratio] = [module.masked_key_indices for module in attentions(model)]
        for module in attentions(model):
            module.masked_key_indices = None


def compress_kvzip(
    model: PreTrainedModel, prefill: Prefill, ratios: list[float], *, chat: bool
) -> list[Compressed]:
    """KVzip at each ratio. It lets the model repeat the prompt once, which takes its time.

    chat: whether the prompt is in chat format; else nothing of it belongs to a chat template.
    """
    press = KVzipForAll(max(ratios))
    press.ratios = ratios
    cache = prefill.copy_of_cache()
    with press(model):
        press._context_ids, press._cache = prefill.ids, cache
        if not chat:
            press.prefix_length, press._suffix_ids = 0, press._suffix_ids[:, :0]
    return [Compressed(cache, press.of_ratio[ratio]) for ratio in ratios]


class BatchLayer(DynamicLayer):
    """A layer's entries of several rows, each head's own ones from the left, with room for more.

    bias: [row, KV head, 1, place], which hides what is no entry.
    """

    def __init__(self, rows: list[Compressed], layer: int, num_new: int) -> None:
        super().__init__()
        self.is_initialized = True
        seen = [row.seen(layer) for row in rows]
        self.length = max(int(one.sum(-1).max()) for one in seen)
        shape = (len(rows), *seen[0].shape[:1], self.length + num_new)
        first = rows[0].cache.layers[layer].keys
        self.all_keys = first.new_zeros(*shape, first.shape[-1])
        self.all_values = torch.zeros_like(self.all_keys)
        self.bias = first.new_zeros(*shape)[:, :, None]
        self.bias[..., : self.length] = -torch.inf
        for number, (row, each) in enumerate(zip(rows, seen, strict=True)):
            entries = row.cache.layers[layer]
            for head, places in enumerate(each):
                n = int(places.sum())
                self.all_keys[number, head, :n] = entries.keys[0, head, places]
                self.all_values[number, head, :n] = entries.values[0, head, places]
                self.bias[number, head, :, :n] = 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds one entry to each head."""
        self.all_keys[:, :, self.length] = keys[:, :, 0]
        self.all_values[:, :, self.length] = values[:, :, 0]
        self.length += 1
        return self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Of the batch, which is not the text's."""
        return self.length


_sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *rest: Any,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """kvpress's attention while a prompt is read; of a batch, one token to each head's own entries.

    kvpress hides entries from a query by keys that it makes up for it; here they are left out.
    """
    layer = getattr(module, "batch_layer", None)
    if layer is None:
        return _sdpa(module, query, key, value, *rest, **named)
    rows, heads, _, size = query.shape
    groups = query.view(rows, key.shape[1], heads // key.shape[1], size)
    out = scaled_dot_product_attention(
        groups, key, value, layer.bias[..., : layer.length], scale=named["scaling"]
    )
    return out.reshape(rows, 1, heads, size), None


ALL_ATTENTION_FUNCTIONS["sdpa"] = attend


@contextmanager
def batch_of(
    model: PreTrainedModel, rows: list[Compressed], num_new: int
) -> Iterator[DynamicCache]:
    """One cache of all `rows` with room for `num_new` tokens, for the attention of this block."""
    batch = DynamicCache()
    batch.layers = [BatchLayer(rows, index, num_new) for index in range(len(rows[0].masked))]
    for module, layer in zip(attentions(model), batch.layers, strict=True):
        module.batch_layer = layer
    try:
        yield batch
    finally:
        for module in attentions(model):
            module.batch_layer = None


def generate(
    model: PreTrainedModel, prefill: Prefill, rows: list[Compressed], max_tokens: int
) -> list[list[int]]:
    """Greedy answers, each up to and without an end token."""
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    tokens = [prefill.logits.argmax(-1).repeat(len(rows))]
    ended = torch.zeros(len(rows), dtype=bool)
    with batch_of(model, rows, max_tokens) as batch:
        while True:
            ended |= torch.tensor([token in ends for token in tokens[-1].tolist()])
            if len(tokens) == max_tokens or ended.all():
                break
            # Not left to the cache, whose length is no longer the text's.
            positions = torch.full((len(rows), 1), prefill.num_tokens + len(tokens) - 1)
            out = model(tokens[-1][:, None], past_key_values=batch, position_ids=positions)
            tokens.append(out.logits[:, -1].argmax(-1))
    return [up_to(answer, ends) for answer in torch.stack(tokens, 1).tolist()]


def up_to(tokens: list[int], ends: set[int]) -> list[int]:
    """`tokens` before the first end token."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


def compression_ratio(num_kept: int, num_tokens: int) -> float:
    """The `compression_ratio` at which a press keeps `num_kept` of `num_tokens`, to the token.

    A press rounds `num_tokens * (1 - compression_ratio)` down, in floating point.
    """
    ratio = 1 - num_kept / num_tokens
    while floor(num_tokens * (1 - ratio)) < num_kept:
        ratio = nextafter(ratio, 0)
    return ratio


def answer(
    model: PreTrainedModel, prompt: dict[str, Any], presses: dict[str, Any], *, chat: bool
) -> list[Answer]:
    """Of every press and number of kept tokens. Raises SystemExit where a press keeps another."""
    prefill = read_prompt(model, prompt["ids"])
    ratios = [compression_ratio(kept, prefill.num_tokens) for kept in prompt["kept"]]
    rows: dict[tuple[str, int], Compressed] = {}
    for name, make in presses.items():
        if name == "kvzip":
            made = compress_kvzip(model, prefill, ratios, chat=chat)
        else:
            made = [compress(model, prefill, make(ratio)) for ratio in ratios]
        rows |= {(name, kept): row for kept, row in zip(prompt["kept"], made, strict=True)}
    # A batch is as long as its longest.
    order = sorted(rows, key=lambda key: int(rows[key].counts.max()))
    answers = []
    for start in range(0, len(order), ROWS_PER_BATCH):
        keys = order[start : start + ROWS_PER_BATCH]
        chosen = [rows[key] for key in keys]
        texts = generate(model, prefill, chosen, prompt["max_tokens"])
        for (name, kept), row, ids in zip(keys, chosen, texts, strict=True):
            counted = float(row.counts.double().mean())
            if abs(counted - kept) > 1:
                raise SystemExit(f"error: {name} keeps {counted} tokens, not {kept}")
            answers.append(
                {
                    "digest": prompt["digest"],
                    "press": name,
                    "kept": kept,
                    "ids": ids,
                    "counted": counted,
                    "bytes": row.num_bytes,
                }
            )
    return answers


# KVzipPress loads the tokenizer again for each prompt.
kvzip_press.AutoTokenizer = SimpleNamespace(from_pretrained=cache(AutoTokenizer.from_pretrained))


@torch.inference_mode()
def main(path: str) -> None:
    """All that the request asks for."""
    with open(path) as stream:
        request = json.load(stream)
    # AdaKVPress masks by an attention function that is not the eager one.
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=request["dtype"], attn_implementation="sdpa"
    ).eval()
    every = presses_of(request["window"], request["kernel_size"])
    for prompt in request["prompts"]:
        presses = {name: every[name] for name in prompt["presses"]}
        answers = answer(model, prompt, presses, chat=request["chat"])
        with open(request["answers"], "a") as stream:
            stream.write("".join(f"{json.dumps(one)}\n" for one in answers))
        print(prompt["digest"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

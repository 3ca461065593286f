# SPDX-License-Identifier: Apache-2.0
"""What is done to a good checkpoint, and the error that it then gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Edit = Callable[[Path], object]


def config(**values: Any) -> Edit:
    return lambda folder: rewrite(folder / "config.json", values)


def rewrite(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def weight(name: str, value: torch.Tensor | None) -> Edit:
    """Replaces a weight, or removes it."""

    def edit(folder: Path) -> None:
        weights = {**load_file(folder / "model.safetensors"), name: value}
        kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def cut(name: str, size: int) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def remove(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only_config(model_type: str, architecture: str, **values: Any) -> Edit:
    """Nothing but a config: what is refused here is refused before weights are asked for."""
    values |= {"model_type": model_type, "architectures": [architecture]}

    def edit(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / "config.json").write_text(json.dumps(values))

    return edit


SHARDS = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
Q_PROJ, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"
UNUSABLE: dict[str, tuple[Edit, str]] = {
    "no config": (remove("config.json"), r"config\.json cannot be read: No such file"),
    "config is no JSON": (write("config.json", "{"), r"config\.json cannot be read: not valid"),
    "config is a list": (write("config.json", "[]"), r"config\.json has no model_type"),
    "unknown type": (config(model_type="foo"), r"no model_type 'foo'"),
    "type is no name": (config(model_type=["foo"]), r"no model_type \['foo'\]"),
    "own code": (
        config(model_type="foo", auto_map={"AutoConfig": "x.Y"}),
        "code of a checkpoint is not run",
    ),
    "bad sizes": (config(num_attention_heads=3), r"hidden size \(32\).*heads \(3\)"),
    "no positions": (config(max_position_embeddings=0), "max_position_embeddings is 0"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "unknown activation": (config(hidden_act="foo"), "KeyError: 'foo'"),
    "too few weights": (config(num_hidden_layers=3), r"lacks 9 .* model\.layers\.2\."),
    "a weight is gone": (
        weight(Q_PROJ, None),
        rf"lacks 1 of the model's weights, for example {Q_PROJ}",
    ),
    "output weights are gone": (weight("lm_head.weight", None), r"lacks 1 .* lm_head\.weight"),
    "wrong shape": (weight(NORM, torch.ones(7)), rf"{NORM} has shape \[7\], .* \[32\]"),
    "truncated": (cut("model.safetensors", -100), r"not a readable safetensors .* incomplete"),
    "truncated header": (cut("model.safetensors", 50), "not a readable safetensors"),
    "empty weights": (cut("model.safetensors", 0), "not a readable safetensors"),
    "a shard is gone": (write("model.safetensors.index.json", SHARDS), "model-00001-of-00002"),
    "no weights": (remove("model.safetensors"), "has no safetensors weights"),
    "pickle": (pickled, r"pytorch_model\.bin is a pickle, which can run code"),
    "adapter": (write("adapter_config.json", "{}"), "is an adapter: merge it"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "bad tokenizer": (write("tokenizer.json", "{}"), "the tokenizer cannot be loaded"),
}
UNSUPPORTED: dict[str, tuple[Edit, str]] = {
    "unknown class": (config(architectures=["FooForCausalLM"]), "'FooForCausalLM'.*'LlamaForC"),
    "no class": (config(architectures=None), "None, but .* 'LlamaForCausalLM'"),
    "no output": (config(architectures=["LlamaModel"]), "'LlamaModel', but"),
    "t5": (only_config("t5", "T5ForConditionalGeneration"), "'T5.* is not a decoder-only"),
    "bart": (only_config("bart", "BartForConditionalGeneration"), "'Bart.* is not a decoder-only"),
    "bert": (only_config("bert", "BertForMaskedLM"), "names 'BertForMaskedLM'"),
    "bert, said to be causal": (only_config("bert", "BertLMHeadModel"), "attends later tokens"),
    "jamba": (only_config("jamba", "JambaForCausalLM"), "layers of type 'linear_attention'"),
    "mamba": (only_config("mamba", "MambaForCausalLM"), "layers of type 'linear_attention'"),
    "rwkv": (
        only_config("rwkv", "RwkvForCausalLM"),
        "RwkvForCausalLM does not use transformers' attention",
    ),
    "bloom": (
        only_config("bloom", "BloomForCausalLM"),
        "BloomForCausalLM does not use transformers' attention",
    ),
    "deepseek": (only_config("deepseek_v3", "DeepseekV3ForCausalLM"), "latent.*kv_lora_rank 512"),
    "gemma2": (only_config("gemma2", "Gemma2ForCausalLM"), r"attn_logit_softcapping 50\.0"),
    "gpt-oss": (only_config("gpt_oss", "GptOssForCausalLM"), "attention sinks"),
    "gpt-oss, full": (
        only_config(
            "gpt_oss",
            "GptOssForCausalLM",
            num_hidden_layers=1,
            num_local_experts=1,
            layer_types=["full_attention"],
        ),
        "attention sinks",
    ),
    "mistral v0.1": (only_config("mistral", "MistralForCausalLM"), "sliding window of 4096 of"),
    "layer type": (config(layer_types=["conv", "full_attention"]), "layers of type 'conv'"),
}

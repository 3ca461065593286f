# SPDX-License-Identifier: Apache-2.0
"""Score files of other programs, as the importers' tests need them."""

import io

import numpy as np

from headkv_vllm.head_scores.identity import ModelIdentity, identify
from headkv_vllm.head_scores.importers import find_importer, guess_format

LAYERS, HEADS, KV_HEADS = 32, 32, 8


def make_identity(num_layers=LAYERS, num_heads=HEADS, num_kv_heads=KV_HEADS) -> ModelIdentity:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": 8,
    }
    return identify(config, {"w": (1,)})


LLAMA_8B = make_identity()
TINY = make_identity(2, 4, 2)


def reference_document(num_layers=LAYERS, num_heads=HEADS, ragged=True):
    """Lists of samples by head, keys shuffled, some samples exactly zero."""
    rng = np.random.default_rng(0)
    keys = [f"{layer}-{head}" for layer in range(num_layers) for head in range(num_heads)]
    rng.shuffle(keys)
    sizes = rng.integers(1, 9, len(keys)) if ragged else [5] * len(keys)
    samples = [rng.random(size) * (rng.random(size) > 0.3) for size in sizes]
    return {key: values.tolist() for key, values in zip(keys, samples, strict=True)}


def imported(path, identity=LLAMA_8B, tensor=None):
    return find_importer(guess_format(path), tensor)(path, identity)


def written(tmp_path, name, contents):
    path = tmp_path / name
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return path


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()

# SPDX-License-Identifier: Apache-2.0
"""Which layers have full attention, by the configurations of published models."""

import pytest

from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.identity import identify
from headkv_vllm.head_scores.layer_types import full_attention_layers

FULL, SLIDING = "full_attention", "sliding_attention"
SIZES = {"num_hidden_layers": 26, "max_position_embeddings": 32768}
CASES = {
    # As it is on the hub: transformers derives the types from a pattern.
    "Gemma 3 1B": (
        {"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 6},
        [5, 11, 17, 23],
    ),
    "Gemma 2": ({"model_type": "gemma2", "sliding_window": 4096}, list(range(1, 26, 2))),
    "types in the file": (
        {"model_type": "cohere2", "layer_types": [FULL, *[SLIDING] * 25], "sliding_window": 64},
        [0],
    ),
    "Qwen2.5, whose window is switched off": (
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        list(range(26)),
    ),
    "Mistral 7B v0.1": ({"model_type": "mistral", "sliding_window": 4096}, []),
    "a window over all positions": (
        {"model_type": "mistral", "sliding_window": 32768},
        list(range(26)),
    ),
    "a window, and an unknown model": ({"model_type": "new", "sliding_window": 4096}, []),
    "no window": ({"model_type": "llama"}, list(range(26))),
}


@pytest.mark.parametrize("name", CASES)
def test_full_attention_layers(name: str) -> None:
    config, expected = CASES[name]
    assert full_attention_layers({**SIZES, **config}, 26) == expected


def test_scores_are_of_the_layers_with_full_attention() -> None:
    heads = {"num_attention_heads": 4, "hidden_size": 64}
    gemma = {**SIZES, **CASES["Gemma 3 1B"][0], **heads}
    assert identify({"architectures": ["Gemma3ForCausalLM"], **gemma}, {}).num_layers == 4
    mistral = {**SIZES, **CASES["Mistral 7B v0.1"][0], **heads}
    with pytest.raises(ScoreFileError, match="none of the 26 layers has full attention"):
        identify({"architectures": ["MistralForCausalLM"], **mistral}, {})

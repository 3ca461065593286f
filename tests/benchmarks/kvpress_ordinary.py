# SPDX-License-Identifier: Apache-2.0
"""Compares `side.py` with kvpress's ordinary use; runs in kvpress's environment.

Usage: python kvpress_ordinary.py REQUEST, as `side.py` reads it. Ends with an error where answers
or numbers of kept tokens differ.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "kvpress"))

import side
import torch
from transformers import AutoModelForCausalLM, DynamicCache


def ordinary(model, press, ids, max_tokens):
    """One prompt, one press: read under it, then greedy steps, as kvpress's pipeline does it.

    Returns the answer, and the entries that each layer's heads keep.
    """
    cache = DynamicCache()
    with press(model):
        hidden = model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    masked = [module.masked_key_indices for module in side.attentions(model)]
    counts = side.Compressed(cache, list(masked)).counts
    tokens = [int(model.lm_head(hidden.last_hidden_state[:, -1]).argmax())]
    ends = model.generation_config.eos_token_id
    while len(tokens) < max_tokens and tokens[-1] != ends:
        position = torch.tensor([[len(ids) + len(tokens) - 1]])
        step = model(torch.tensor([tokens[-1:]]), past_key_values=cache, position_ids=position)
        tokens.append(int(step.logits[0, -1].argmax()))
    for module in side.attentions(model):
        module.masked_key_indices = None
    return side.up_to(tokens, {ends}), counts


@torch.inference_mode()
def main(path):
    request = json.loads(Path(path).read_text())
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=request["dtype"], attn_implementation="sdpa"
    ).eval()
    presses = side.presses_of(request["window"], request["kernel_size"])
    for prompt in request["prompts"]:
        ids = prompt["ids"]
        found = {
            (one["press"], one["kept"]): one
            for one in side.answer(model, prompt, presses, chat=True)
        }
        assert len(found) == len(presses) * len(prompt["kept"])
        for (name, kept), one in found.items():
            press = presses[name](side.compression_ratio(kept, len(ids)))
            answer, counts = ordinary(model, press, ids, prompt["max_tokens"])
            assert one["counted"] == float(counts.double().mean()), (name, kept)
            assert one["ids"] == answer, (name, kept, one["ids"], answer)
    print("same", len(presses), "presses")


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: Apache-2.0
import torch

from tools.needle_training.attention import reduced_masks
from tools.needle_training.model import initial_model

FULL_HEADS = torch.tensor([[True, False], [False, False]])


def plain_masks(full_heads, group, num_tokens, window, prompt_length):
    """The obvious twin of `reduced_masks`."""
    masks = torch.zeros(*full_heads.shape, num_tokens, num_tokens, dtype=torch.bool)
    for layer, head in torch.cartesian_prod(*map(torch.arange, full_heads.shape)).tolist():
        for row in range(num_tokens):
            for column in range(row + 1):
                if prompt_length is None:
                    seen = column == 0 or row - column < window
                else:
                    kept = column == 0 or column >= prompt_length - window
                    seen = row < prompt_length or kept
                masks[layer, head, row, column] = seen or full_heads[layer, head]
    return list(masks.repeat_interleave(group, dim=1).unsqueeze(1))


def test_reduced_masks_match_the_plain_twin():
    for prompt_length in (None, 5, 9):
        arguments = (FULL_HEADS, 3, 12, 4, prompt_length)
        vectorised, plain = reduced_masks(*arguments), plain_masks(*arguments)
        assert all(torch.equal(*pair) for pair in zip(vectorised, plain, strict=True))


@torch.inference_mode()
def test_a_causal_mask_and_none_give_the_same():
    model = initial_model(seed=0).eval()
    ids = torch.randint(0, 448, (2, 20), generator=torch.Generator().manual_seed(0))
    everything = reduced_masks(torch.ones(4, 4, dtype=torch.bool), 2, 20, 1, None)
    torch.testing.assert_close(model(ids, layer_masks=everything).logits, model(ids).logits)


@torch.inference_mode()
def test_our_attention_is_the_stock_one():
    model = initial_model(seed=0).eval()
    ids = torch.randint(0, 448, (2, 20), generator=torch.Generator().manual_seed(1))
    ours = model(ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids).logits, ours)

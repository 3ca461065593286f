# SPDX-License-Identifier: Apache-2.0
"""What each head of a live request keeps, where its prompt has decided that."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Decided:
    """Of adaptive policies, under which a prompt splits each layer's head blocks among its heads.

    adaptive: [num_policies] int32, 1 for such policies.
    counts: [num_blocks, L*H] int32, in the row of a request's first compressed block the head
        blocks of each head. That block is its own as long as it lives, and it writes before it
        reads, so nobody need know when it ends.
    """

    adaptive: torch.Tensor
    counts: torch.Tensor

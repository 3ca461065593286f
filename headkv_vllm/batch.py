# SPDX-License-Identifier: Apache-2.0
"""What one step of the engine does with each token of its batch.

A token is either *whole*: it attends the blocks of tokens, as in any paged cache; or *by head*: it
follows a compressed prompt, and each KV head attends its own head blocks. All tokens of a request
without compressed blocks are whole, and so are a compressed request's prompt tokens, which are
computed before the prompt is compressed. The step that computes the last of them compresses the
prompt, and goes no further with its request: the scheduler ends a chunk there.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from headkv_vllm.budgets.policy import Policy

Indices = slice | torch.Tensor
"""Places in a batch: a slice where they are in a row, which costs no copy, and [n] int64 if not."""


@dataclass(frozen=True)
class WholeTokens:
    """Sequences that attend blocks of tokens.

    tokens: their places in the batch.
    query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs] int32.
    block_table: [num_reqs, width] int32.
    """

    tokens: Indices
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor


@dataclass(frozen=True)
class HeadTokens:
    """Sequences that attend head blocks: one for each (request, KV head), in this order.

    rows: [num_tokens * H] places in the batch's queries, seen as [num_tokens * H, G, D]
        (H KV heads of G query heads each).
    query_start_loc: [num_reqs * H + 1] int32, of those rows.
    seq_lens: [L, num_reqs * H] int32. block_tables: L x [num_reqs * H, width] int32.
    """

    rows: Indices
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: tuple[torch.Tensor, ...]

    @cached_property
    def layer_seq_lens(self) -> tuple[torch.Tensor, ...]:
        """L x [num_reqs * H] int32, views of `seq_lens`."""
        return self.seq_lens.unbind()


@dataclass(frozen=True)
class Compression:
    """A prompt that this step completes and compresses.

    window_start: index in the batch of the first token of its window.
    num_prompt_tokens: T. num_candidates: positions 0 .. F*block_size - 1 may be kept.
    blocks: [ceil(T / block_size)] int64, the prompt's blocks.
    compressed_blocks: c_0 .. c_{K-1}, where the kept entries go.
    policy: the request's.
    num_head_blocks: n[L, H] int32, the head blocks that each head keeps; under an adaptive policy
        only the sums of its layers hold, and each layer decides on its heads when it has attended.
    slots: for each layer [sum(n[l]) * block_size] int64, where the kept entries go, in the order
        of heads: slots of the flat array, head block * block_size + offset.
    """

    window_start: int
    num_prompt_tokens: int
    num_candidates: int
    blocks: torch.Tensor
    compressed_blocks: tuple[int, ...]
    policy: Policy
    num_head_blocks: torch.Tensor
    slots: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Batch:
    """One step. slot_mapping: [num_tokens] int64, where each token's key and value are written."""

    slot_mapping: torch.Tensor
    whole: WholeTokens | None
    compressions: tuple[Compression, ...]
    by_head: HeadTokens | None

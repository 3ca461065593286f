# SPDX-License-Identifier: Apache-2.0
"""What one step of the engine does with each token of its batch, on a CPU.

A token is *dense*: it attends all blocks of its request, as in any paged cache; or *compressed*:
it follows a compressed prompt, and each KV head attends its own head blocks. All tokens of a
request without compressed blocks are dense. So are a compressed request's prompt tokens, because
the prompt is compressed after them. The step that computes the last prompt token compresses the
prompt and goes no further with its request: the scheduler ends a chunk there.

A batch belongs to its planner: it is valid until the planner plans the next step.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from headkv_vllm.cache.compression import PromptCompression

Indices = slice | torch.Tensor
"""Places in a batch: a slice where they are consecutive, which costs no copy, else [n] int64."""


@dataclass(frozen=True)
class DenseTokens:
    """Sequences that attend all blocks of their tokens.

    tokens: their places in the batch.
    query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs] int32.
    block_table: [num_reqs, width] int32.
    """

    tokens: Indices
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor


@dataclass(frozen=True)
class CompressedTokens:
    """Sequences that attend head blocks: one for each (request, KV head), in this order.

    places: [num_tokens * H] places in the batch's queries, seen as [num_tokens * H, G, D]
        (H KV heads of G query heads each).
    query_start_loc: [num_reqs * H + 1] int32, of those places.
    seq_lens: [L, num_reqs * H] int32. block_tables: L x [num_reqs * H, width] int32.
    """

    places: Indices
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: tuple[torch.Tensor, ...]

    @cached_property
    def layer_seq_lens(self) -> tuple[torch.Tensor, ...]:
        """L x [num_reqs * H] int32, views of `seq_lens`."""
        return self.seq_lens.unbind()


@dataclass(frozen=True)
class Batch:
    """One step.

    slot_mapping: [num_tokens] int64, where each token's key and value are written.
    compressions: the prompts that this step completes and compresses.
    continues_last: the step decodes one token of the same compressed requests as the step before
        it, with the same block tables; only slots and lengths are one larger.
    """

    slot_mapping: torch.Tensor
    dense: DenseTokens | None
    compressions: tuple[PromptCompression, ...]
    compressed: CompressedTokens | None
    continues_last: bool = False

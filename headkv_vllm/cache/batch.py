# SPDX-License-Identifier: Apache-2.0
"""What one step of the engine does with each token of its batch, on a CPU.

A token is dense or compressed. A *dense* token attends all blocks of its request, as in any paged
KV cache. A *compressed* token comes after a compression of its request, and each KV head attends
its own head blocks. All tokens of a request without compressed blocks are dense. The prompt tokens
of a compressed request are dense too, because the prompt is compressed after them. No step computes
tokens of a request before and after a compression: the scheduler ends chunks there.

The planner owns its batches. A batch is valid until the planner plans the next step.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from headkv_vllm.cache.request_compression import RequestCompression

Indices = slice | torch.Tensor
"""Indices into a batch: a slice if they are consecutive, which saves a copy, or [n] int64."""


@dataclass(frozen=True)
class DenseTokens:
    """Dense tokens: each request is one sequence, which attends all blocks of its tokens.

    tokens: the indices of the tokens in the batch.
    query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs] int32.
    block_table: [num_reqs, width] int32.
    """

    tokens: Indices
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor


@dataclass(frozen=True)
class CompressedTokens:
    """Compressed tokens: each (request, KV head), in this order, is one sequence of head blocks.

    indices: [num_tokens * H], indices into the queries of the batch. The queries have the shape
        [batch_tokens * H, G, head_size]: H KV heads with G query heads each.
    query_start_loc: [num_reqs * H + 1] int32: where each sequence begins in `indices`.
    seq_lens: [L, num_reqs * H] int32. block_tables: L x [num_reqs * H, width] int32.
    """

    indices: Indices
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: tuple[torch.Tensor, ...]

    def by_head(self, num_kv_heads: int) -> tuple["CompressedTokens", ...]:
        """The tokens of each KV head by itself, where each request is one sequence."""
        lengths = self.query_start_loc.diff()
        head_of_row = torch.arange(len(lengths)).repeat_interleave(lengths) % num_kv_heads
        indices = self.indices
        if isinstance(indices, slice):
            indices = torch.arange(indices.start, indices.stop)
        starts = self.query_start_loc.new_zeros(len(lengths) // num_kv_heads + 1)
        # All heads of a request have as many tokens.
        starts[1:] = lengths[::num_kv_heads].cumsum(0)
        return tuple(
            CompressedTokens(
                indices[head_of_row == head],
                starts,
                self.seq_lens[:, head::num_kv_heads].contiguous(),
                tuple(table[head::num_kv_heads].contiguous() for table in self.block_tables),
            )
            for head in range(num_kv_heads)
        )

    @cached_property
    def layer_seq_lens(self) -> tuple[torch.Tensor, ...]:
        """L x [num_reqs * H] int32, views of `seq_lens`."""
        return self.seq_lens.unbind()


@dataclass(frozen=True)
class WaitingQueries:
    """Tokens whose queries are kept for a compression in a later step.

    tokens: the indices of the tokens in the batch. places: [n] int64; see `WindowQueries`.
    """

    tokens: Indices
    places: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """One step.

    slot_mapping: [num_tokens] int64, where the key and the value of each token are written.
    completed_prompts: the prompts that this step completes and compresses.
    window_starts: of each of these prompts, the index in the batch of the first token of its
        observation window.
    waiting: the queries that must be kept; None if there are none.
    continues_last: whether this step decodes one token of the same compressed requests as the
        step before, with the same block tables. Then only slots and lengths differ, by one.
    """

    slot_mapping: torch.Tensor
    dense: DenseTokens | None = None
    compressed: CompressedTokens | None = None
    completed_prompts: tuple[RequestCompression, ...] = ()
    window_starts: tuple[int, ...] = ()
    waiting: WaitingQueries | None = None
    continues_last: bool = False

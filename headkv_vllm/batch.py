# SPDX-License-Identifier: Apache-2.0
"""What one step of the engine does with each token of its batch.

A token is either *whole*: it attends the blocks of tokens, as in any paged cache; or *by head*: it
follows a compressed prompt, and each KV head attends its own head blocks. All tokens of a request
without compressed blocks are whole, and so are a compressed request's prompt tokens, which are
computed before the prompt is compressed. A step that computes the last of them compresses the
prompt in between. A resumed request's step may do all three.
"""

from dataclasses import dataclass

import torch

from headkv_vllm.block_row import (
    BlockRow,
    compressed_blocks,
    head_block_tables,
    head_seq_lens,
    headers,
    num_compressed_blocks,
    num_prompt_tokens,
    slot_mapping,
    token_block_table,
)
from headkv_vllm.budgets.cache import AllotmentCache
from headkv_vllm.budgets.live import LiveAllotments
from headkv_vllm.budgets.policy import Policy
from headkv_vllm.budgets.registry import POLICIES
from headkv_vllm.budgets.request import RequestBudget, full_blocks


@dataclass(frozen=True)
class WholeTokens:
    """Sequences that attend blocks of tokens.

    token_indices: [num_tokens] int64 into the batch, or None when it is the whole batch.
    query_start_loc: [num_reqs + 1] int32. seq_lens: [num_reqs] int32.
    block_table: [num_reqs, width] int32.
    """

    token_indices: torch.Tensor | None
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor


@dataclass(frozen=True)
class HeadTokens:
    """Sequences that attend head blocks: one for each (request, KV head), in this order.

    row_indices: [num_tokens * H] int64 into the batch's queries, seen as [num_tokens * H, G, D]
        (H KV heads of G query heads each); or None when they are all of them in order.
    query_start_loc: [num_reqs * H + 1] int32, of those rows.
    seq_lens: [L, num_reqs * H] int32. block_tables: [L, num_reqs * H, width] int32.
    """

    row_indices: torch.Tensor | None
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor


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


@dataclass(frozen=True)
class TokenCounts:
    """How many of each request's tokens in this step are whole and by head: [num_reqs] int64."""

    whole: torch.Tensor
    by_head: torch.Tensor


def count_tokens(
    block_table: torch.Tensor, query_lens: torch.Tensor, seq_lens: torch.Tensor
) -> TokenCounts:
    """Tell the tokens of each request apart.

    block_table: [num_reqs, width] int32 rows. query_lens, seq_lens: [num_reqs] int64, the tokens
    of this step and of the whole request up to its end.
    """
    after_prompt = (seq_lens - num_prompt_tokens(block_table)).clamp(min=0)
    is_compressed = num_compressed_blocks(block_table) > 0
    by_head = torch.where(is_compressed, torch.minimum(after_prompt, query_lens), 0)
    return TokenCounts(query_lens - by_head, by_head)


def count_tokens_plain(
    block_table: torch.Tensor, query_lens: torch.Tensor, seq_lens: torch.Tensor
) -> TokenCounts:
    """Plain twin of `count_tokens`."""
    counts = torch.zeros(2, len(query_lens), dtype=torch.int64)
    for request, row in enumerate(map(BlockRow.parse, block_table.tolist())):
        end = int(seq_lens[request])
        for position in range(end - int(query_lens[request]), end):
            is_by_head = bool(row.compressed_blocks) and position >= row.num_prompt_tokens
            counts[int(is_by_head), request] += 1
    return TokenCounts(counts[0], counts[1])


class BatchPlanner:
    """Plans steps for one worker: L layers with H KV heads each, both of this worker alone."""

    def __init__(
        self,
        allotments: AllotmentCache,
        num_layers: int,
        num_kv_heads: int,
        block_size: int,
        window: int,
        live: LiveAllotments,
    ) -> None:
        """live: what prompts have decided so far, under adaptive policies."""
        self._allotments, self._live = allotments, live
        self._num_layers, self._num_kv_heads = num_layers, num_kv_heads
        self._block_size, self._window = block_size, window

    def plan(
        self, block_table: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
    ) -> Batch:
        """Plan one step.

        block_table: [num_reqs, width] int32 rows. query_start_loc: [num_reqs + 1] int32.
        seq_lens: [num_reqs] int32, the tokens of each request up to the end of this step.
        Under an adaptive policy no step completes a prompt and goes on with its request by head:
        what the heads keep is decided too late for it to be planned.
        """
        query_lens = query_start_loc.diff().long()
        requests = torch.repeat_interleave(query_lens)
        computed = seq_lens - query_lens
        positions = torch.arange(len(requests)) - (query_start_loc[:-1] - computed)[requests]
        counts = count_tokens(block_table, query_lens, seq_lens.long())
        is_by_head = positions >= (seq_lens - counts.by_head)[requests]
        return Batch(
            slot_mapping(block_table, requests, positions, self._block_size),
            self._whole(block_table, seq_lens, counts, is_by_head),
            self._compressions(block_table, query_start_loc, computed, seq_lens),
            self._by_head(block_table, seq_lens, counts, is_by_head),
        )

    def _whole(
        self,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        counts: TokenCounts,
        is_by_head: torch.Tensor,
    ) -> WholeTokens | None:
        (requests,) = torch.nonzero(counts.whole, as_tuple=True)
        if len(requests) == 0:
            return None
        whole_lens = (seq_lens - counts.by_head)[requests].int()
        num_blocks = -(-int(whole_lens.max()) // self._block_size)
        return WholeTokens(
            torch.nonzero(~is_by_head).flatten() if is_by_head.any() else None,
            _start_loc(counts.whole[requests]),
            whole_lens,
            token_block_table(block_table[requests], num_blocks),
        )

    def _by_head(
        self,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        counts: TokenCounts,
        is_by_head: torch.Tensor,
    ) -> HeadTokens | None:
        (requests,) = torch.nonzero(counts.by_head, as_tuple=True)
        if len(requests) == 0:
            return None
        rows, lengths = block_table[requests], seq_lens[requests]
        budgets = self._budgets(rows)
        begins = counts.whole[requests].tolist()
        num_head_blocks = torch.stack(
            [self._decided(*request) for request in zip(rows, budgets, begins, strict=True)]
        )
        num_full_blocks = torch.tensor([budget.num_full_blocks for budget in budgets]).int()
        arguments = (num_head_blocks, num_full_blocks, lengths, self._block_size)
        num_tokens = counts.by_head[requests]
        is_all_in_order = bool(is_by_head.all()) and int(num_tokens.max()) == 1
        return HeadTokens(
            None if is_all_in_order else self._rows_by_head(is_by_head, num_tokens),
            _start_loc(num_tokens.repeat_interleave(self._num_kv_heads)),
            head_seq_lens(*arguments),
            head_block_tables(rows, *arguments),
        )

    def _rows_by_head(self, is_by_head: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
        """The rows [token * H + head] in the order of (request, head, token)."""
        heads = torch.arange(self._num_kv_heads)[:, None]
        tokens_of_requests = torch.nonzero(is_by_head).flatten().split(num_tokens.tolist())
        return torch.cat(
            [(tokens * self._num_kv_heads + heads).flatten() for tokens in tokens_of_requests]
        )

    def _compressions(
        self,
        block_table: torch.Tensor,
        query_start_loc: torch.Tensor,
        computed: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> tuple[Compression, ...]:
        lengths = num_prompt_tokens(block_table)
        completes = (computed < lengths) & (seq_lens >= lengths)
        is_compressed = num_compressed_blocks(block_table) > 0
        requests = torch.nonzero(completes & is_compressed).flatten().tolist()
        offsets = query_start_loc[:-1] - computed
        return tuple(
            self._compression(block_table[request], int(offsets[request])) for request in requests
        )

    def _compression(self, row: torch.Tensor, offset: int) -> Compression:
        """offset: what turns a position of this request into an index of the batch."""
        (budget,) = self._budgets(row[None])
        length = budget.num_prompt_tokens
        num_head_blocks = self._num_head_blocks(budget)
        num_blocks = -(-length // self._block_size)
        return Compression(
            offset + length - self._window,
            length,
            budget.num_full_blocks * self._block_size,
            token_block_table(row[None], num_blocks)[0].long(),
            tuple(compressed_blocks(row).tolist()),
            POLICIES[budget.policy],
            num_head_blocks,
            self._slots(row, num_head_blocks),
        )

    def _slots(self, row: torch.Tensor, num_head_blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads_per_block = num_head_blocks.numel()
        first_of_block = compressed_blocks(row).long()[:, None] * heads_per_block
        dealt = first_of_block + torch.arange(heads_per_block)
        slots = dealt.view(-1, 1) * self._block_size + torch.arange(self._block_size)
        per_layer = (num_head_blocks.sum(1) * self._block_size).tolist()
        return torch.split(slots.flatten(), per_layer)

    def _budgets(self, rows: torch.Tensor) -> list[RequestBudget]:
        window, block_size, policies = self._window, self._block_size, tuple(POLICIES)
        return [
            RequestBudget(
                length, num_blocks, full_blocks(length, window, block_size), policies[policy]
            )
            for length, num_blocks, policy in headers(rows)
        ]

    def _decided(self, row: torch.Tensor, budget: RequestBudget, num_whole: int) -> torch.Tensor:
        """n: [L, H] int32, of a request that is compressed after its `num_whole` tokens."""
        if not POLICIES[budget.policy].adaptive:
            return self._num_head_blocks(budget)
        assert num_whole == 0, "the prompt has yet to decide"
        return torch.tensor(self._live.allotment(compressed_blocks(row).tolist()))

    def _num_head_blocks(self, budget: RequestBudget) -> torch.Tensor:
        """n: [L, H] int32, as far as the prompt's length decides it."""
        return torch.tensor(self._allotments.allot(budget), dtype=torch.int32)


def _start_loc(lengths: torch.Tensor) -> torch.Tensor:
    """[n] lengths to [n + 1] int32 starts."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()

# SPDX-License-Identifier: Apache-2.0
"""The compressed tokens of each KV head by itself."""

import pytest
import torch

from headkv_vllm.cache.batch import CompressedTokens, Indices

H = 3


@pytest.mark.parametrize("lengths", [(1, 1), (2, 1, 4)], ids=str)
@pytest.mark.parametrize("is_slice", [True, False])
def test_by_head_has_the_sequences_of_each_head(lengths: tuple[int, ...], is_slice: bool) -> None:
    of_sequences = torch.tensor(lengths).repeat_interleave(H)
    starts = torch.nn.functional.pad(of_sequences.cumsum(0), (1, 0)).int()
    num_rows, num_seqs = int(starts[-1]), len(of_sequences)
    indices: Indices = slice(0, num_rows) if is_slice else torch.arange(num_rows) * 2 + 5
    rows = torch.arange(num_rows) if isinstance(indices, slice) else indices
    seq_lens = torch.arange(2 * num_seqs, dtype=torch.int32).view(2, num_seqs)
    tables = tuple(torch.arange(num_seqs * 4).view(num_seqs, 4) + layer for layer in range(2))
    parts = CompressedTokens(indices, starts, seq_lens, tables).by_head(H)
    assert len(parts) == H
    for head, part in enumerate(parts):
        own = part.query_start_loc.tolist()
        assert len(own) == len(lengths) + 1 and part.query_start_loc.dtype == torch.int32
        for request in range(len(lengths)):
            sequence = request * H + head
            begin, end = starts[sequence : sequence + 2].tolist()
            found = torch.as_tensor(part.indices)[own[request] : own[request + 1]]
            assert torch.equal(found, rows[begin:end])
            for layer in range(2):
                assert part.seq_lens[layer, request] == seq_lens[layer, sequence]
                assert torch.equal(part.block_tables[layer][request], tables[layer][sequence])

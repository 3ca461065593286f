# SPDX-License-Identifier: Apache-2.0
"""Which KV heads each tensor-parallel rank holds."""


def worker_kv_heads(num_kv_heads: int, rank: int, world_size: int) -> list[int]:
    """The KV heads of one tensor-parallel rank, as vLLM shares them out.

    With fewer KV heads than ranks, `world_size / num_kv_heads` neighbouring ranks hold the same.
    """
    if world_size > num_kv_heads:
        return [rank * num_kv_heads // world_size]
    per_rank = num_kv_heads // world_size
    return list(range(rank * per_rank, (rank + 1) * per_rank))

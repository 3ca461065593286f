# SPDX-License-Identifier: Apache-2.0
"""The KV heads of each tensor-parallel rank."""


def worker_kv_heads(num_kv_heads: int, rank: int, world_size: int) -> list[int]:
    """The KV heads of one tensor-parallel rank, as vLLM distributes them.

    With fewer KV heads than ranks, `world_size / num_kv_heads` neighbouring ranks hold copies of
    the same head.
    """
    if world_size > num_kv_heads:
        return [rank * num_kv_heads // world_size]
    per_rank = num_kv_heads // world_size
    return list(range(rank * per_rank, (rank + 1) * per_rank))

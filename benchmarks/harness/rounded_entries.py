# SPDX-License-Identifier: Apache-2.0
"""What an fp8 cache would hold, on CPUs, whose kernels know no fp8."""

import torch

STORED = torch.float8_e4m3fn


def rounded(entries: torch.Tensor) -> torch.Tensor:
    """As the kernels for GPUs store and read them, with a scale of 1: the nearest e4m3 number."""
    limits = torch.finfo(STORED)
    return entries.clamp(limits.min, limits.max).to(STORED).to(entries.dtype)


def round_what_is_written() -> None:
    """From now on, in this process, every entry that our CPU backend writes is rounded."""
    from headkv_vllm.engine.attention.cpu_cache import PackedCache

    write = PackedCache.write

    def write_rounded(
        cache: PackedCache, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
    ) -> None:
        write(cache, rounded(key), rounded(value), slots)

    PackedCache.write = write_rounded  # type: ignore[method-assign]

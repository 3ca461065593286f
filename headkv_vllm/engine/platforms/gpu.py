# SPDX-License-Identifier: Apache-2.0
"""The common part of our GPU platforms."""

from typing import ClassVar

from headkv_vllm.engine.compatibility import Limits
from headkv_vllm.engine.names import GPU_BLOCK_SIZE, TRITON_BACKEND_PATH
from headkv_vllm.engine.platforms.platform import HeadKVPlatform


class HeadKVGpuPlatform(HeadKVPlatform):
    """Uses our own kernels, which set the limits.

    A step with one token of a request is a decode, so a single token must not complete a prompt.
    One kernel program holds all queries of a window and a KV head. vLLM's model runner V2 warms up
    with rows without our header, which are short enough only if there are few draft tokens.
    """

    headkv_backend = TRITON_BACKEND_PATH
    headkv_block_size = GPU_BLOCK_SIZE
    headkv_limits: ClassVar[Limits] = Limits(
        min_window=2,
        max_window_queries=256,
        max_drafts=6,
        compresses_again=False,
        sliding_windows=False,
        sinks=False,
    )
    headkv_caution = (
        "experimental on GPUs: it was checked on one H100. In a clone, scripts/gpu-check tells "
        "whether its kernels and answers are right on this GPU"
    )

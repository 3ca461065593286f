# SPDX-License-Identifier: Apache-2.0
"""What our platforms of GPUs have in common, whoever made them."""

from typing import ClassVar

from headkv_vllm.engine.compatibility import Limits
from headkv_vllm.engine.names import GPU_BLOCK_SIZE, TRITON_BACKEND_PATH
from headkv_vllm.engine.platforms.platform import HeadKVPlatform


class HeadKVGpuPlatform(HeadKVPlatform):
    """On our own kernels.

    A step of single tokens is a decode there, so none may complete a prompt. A program holds all
    of a window's queries of a KV head. vLLM's model runner V2 warms up with rows that have no
    header of ours, which are short as long as drafts are few.
    """

    headkv_backend = TRITON_BACKEND_PATH
    headkv_block_size = GPU_BLOCK_SIZE
    headkv_limits: ClassVar[Limits] = Limits(min_window=2, max_window_queries=256, max_drafts=6)
    headkv_caution = (
        "experimental on GPUs: it was checked on one H100. In a clone, scripts/gpu-check tells "
        "whether its kernels and answers are right on this GPU"
    )

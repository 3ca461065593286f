# SPDX-License-Identifier: Apache-2.0
"""vLLM's platform of AMD's GPUs, with our backend for `--attention-backend headkv`."""

from vllm.platforms.rocm import RocmPlatform

from headkv_vllm.engine.names import GPU_BLOCK_SIZE, GPU_CAUTION, TRITON_BACKEND_PATH
from headkv_vllm.engine.platforms.platform import HeadKVPlatform


class HeadKVRocmPlatform(HeadKVPlatform, RocmPlatform):
    """On our own kernels alone."""

    headkv_backend = TRITON_BACKEND_PATH
    headkv_block_size = GPU_BLOCK_SIZE
    headkv_min_window = 2
    headkv_caution = GPU_CAUTION

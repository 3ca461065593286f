# SPDX-License-Identifier: Apache-2.0
"""vLLM's platform for AMD GPUs with our backend for `--attention-backend headkv`."""

from vllm.platforms.rocm import RocmPlatform

from headkv_vllm.engine.platforms.gpu import HeadKVGpuPlatform


class HeadKVRocmPlatform(HeadKVGpuPlatform, RocmPlatform):
    """Uses our own kernels only."""

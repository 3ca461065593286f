# SPDX-License-Identifier: Apache-2.0
"""vLLM's platform of AMD's GPUs, with our backend for `--attention-backend headkv`."""

from vllm.platforms.rocm import RocmPlatform

from headkv_vllm.engine.platforms.gpu import HeadKVGpuPlatform


class HeadKVRocmPlatform(HeadKVGpuPlatform, RocmPlatform):
    """On our own kernels alone."""

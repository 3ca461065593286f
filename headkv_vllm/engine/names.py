# SPDX-License-Identifier: Apache-2.0
"""What vLLM knows us by. Imports nothing, so that every part of the plugin may import it."""

PLUGIN_NAME = "headkv"
"""Of our entry points."""
BACKEND_NAME = "HEADKV"
CPU_BACKEND_PATH = "headkv_vllm.engine.attention.cpu.HeadKVCpuBackend"
TRITON_BACKEND_PATH = "headkv_vllm.engine.attention.triton.HeadKVTritonBackend"
FLASH_ATTN_BACKEND_PATH = "headkv_vllm.engine.attention.flash_attn.HeadKVFlashAttentionBackend"
SCHEDULER_PATH = "headkv_vllm.engine.scheduler.HeadKVScheduler"
ASYNC_SCHEDULER_PATH = "headkv_vllm.engine.scheduler.HeadKVAsyncScheduler"

PLATFORM_PATHS = {
    "vllm.platforms.cpu.CpuPlatform": "headkv_vllm.engine.platforms.cpu.HeadKVCpuPlatform",
    "vllm.platforms.cuda.CudaPlatform": "headkv_vllm.engine.platforms.cuda.HeadKVCudaPlatform",
    "vllm.platforms.rocm.RocmPlatform": "headkv_vllm.engine.platforms.rocm.HeadKVRocmPlatform",
}
"""Ours by vLLM's that each extends."""

CPU_BLOCK_SIZE = 32
"""Small blocks give the heads finer budgets; the fastest CPU kernels want multiples of 32."""
GPU_BLOCK_SIZE = 16
"""What GPU kernels read at once, at least."""

FORCED_TOKENS_CLASS = "headkv_vllm.engine.forced_tokens:ForcedTokens"
"""What `--logits-processors` takes."""

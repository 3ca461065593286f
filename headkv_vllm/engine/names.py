# SPDX-License-Identifier: Apache-2.0
"""The names by which vLLM finds the plugin. This module imports nothing."""

PLUGIN_NAME = "headkv"
"""Of our entry points."""
BACKEND_NAME = "HEADKV"
CPU_BACKEND_PATH = "headkv_vllm.engine.attention.cpu.HeadKVCpuBackend"
CPU_SLIDING_WINDOW_PATH = "headkv_vllm.engine.attention.cpu_sliding_window.SlidingWindowCpuBackend"
TRITON_BACKEND_PATH = "headkv_vllm.engine.attention.triton.HeadKVTritonBackend"
FLASH_ATTN_BACKEND_PATH = "headkv_vllm.engine.attention.flash_attn.HeadKVFlashAttentionBackend"
SCHEDULER_PATH = "headkv_vllm.engine.scheduler.HeadKVScheduler"
ASYNC_SCHEDULER_PATH = "headkv_vllm.engine.scheduler.HeadKVAsyncScheduler"

PLATFORM_PATHS = {
    "vllm.platforms.cpu.CpuPlatform": "headkv_vllm.engine.platforms.cpu.HeadKVCpuPlatform",
    "vllm.platforms.cuda.CudaPlatform": "headkv_vllm.engine.platforms.cuda.HeadKVCudaPlatform",
    "vllm.platforms.rocm.RocmPlatform": "headkv_vllm.engine.platforms.rocm.HeadKVRocmPlatform",
}
"""Our platform for each of vLLM's platforms that it extends."""

CPU_BLOCK_SIZE = 32
"""Small blocks give finer budgets. The fastest CPU kernels need multiples of 32."""
GPU_BLOCK_SIZE = 16
"""The smallest block size of the GPU kernels."""

FORCED_TOKENS_CLASS = "headkv_vllm.engine.forced_tokens:ForcedTokens"
"""The value for `--logits-processors`."""

# SPDX-License-Identifier: Apache-2.0
"""What vLLM knows us by. Imports nothing, so that every part of the plugin may import it."""

BACKEND_NAME = "HEADKV"
BACKEND_PATH = "headkv_vllm.engine.backends.cpu.HeadKVCpuBackend"
PLATFORM_PATH = "headkv_vllm.engine.platform.HeadKVCpuPlatform"
SCHEDULER_PATH = "headkv_vllm.engine.scheduler.HeadKVScheduler"
ASYNC_SCHEDULER_PATH = "headkv_vllm.engine.scheduler.HeadKVAsyncScheduler"

DEFAULT_BLOCK_SIZE = 32
"""Small blocks give the heads finer budgets; the CPU kernels want multiples of 32."""

FORCED_TOKENS_CLASS = "headkv_vllm.engine.forced_tokens:ForcedTokens"
"""What `--logits-processors` takes."""
FORCED_TOKENS_KEY = "headkv_forced_tokens"
"""The request's argument, in `vllm_xargs`: token ids that its output begins with."""

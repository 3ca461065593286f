# SPDX-License-Identifier: Apache-2.0
"""Our logger, under vLLM's, so that its format, its levels and VLLM_LOGGING_LEVEL hold for us."""

from vllm.logger import init_logger

logger = init_logger("vllm.plugins.headkv")

# SPDX-License-Identifier: Apache-2.0
"""The plugin's logger. It is a child of vLLM's, so it has vLLM's format and logging level."""

from vllm.logger import init_logger

logger = init_logger("vllm.plugins.headkv")

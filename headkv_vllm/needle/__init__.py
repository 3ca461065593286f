# SPDX-License-Identifier: Apache-2.0
"""A tiny bundled Llama that really retrieves: vocabulary, tasks, trainer, checkpoint and scores."""

from headkv_vllm.needle.paths import checkpoint_path

__all__ = ["checkpoint_path"]

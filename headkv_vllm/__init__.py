# SPDX-License-Identifier: Apache-2.0
"""HeadKV for vLLM: a KV cache that gives every attention head its own budget."""

__version__ = "0.1.0"

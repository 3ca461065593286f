# SPDX-License-Identifier: Apache-2.0
"""StreamingLLM's budget policy: the first tokens and the last ones, for every head alike."""

from headkv_vllm.budgets.policy import Policy
from headkv_vllm.budgets.uniform import uniform_shares

STREAMING = Policy(uniform_shares, positions="recency")
"""StreamingLLM (arXiv 2309.17453), of a prompt: `sink` tokens, and those before the window.

Unlike there, keys keep the positions they were computed at, and generated tokens stay.
"""

# SPDX-License-Identifier: Apache-2.0
"""HeadKV between the layers, Ada-KV inside each."""

from headkv_vllm.budgets.headkv import headkv_shares
from headkv_vllm.budgets.policy import Policy

HEADKV_ADA = Policy(headkv_shares, adaptive=True)
"""A layer has the head blocks that HeadKV (arXiv 2410.19258) gives its heads together, and the
prompt splits them as in Ada-KV (arXiv 2407.11550), see `adaptive.split_layer`."""

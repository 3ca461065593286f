# SPDX-License-Identifier: Apache-2.0
"""Ada-KV's budget policy: the same for every layer, split by what the prompt's heads attend."""

from headkv_vllm.budgets.policy import Policy
from headkv_vllm.budgets.uniform import uniform_shares

ADAKV = Policy(uniform_shares, adaptive=True)
"""Ada-KV (arXiv 2407.11550): K * H head blocks for each layer, see `adaptive.split_layer`."""

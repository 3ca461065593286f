# SPDX-License-Identifier: Apache-2.0
"""The budget policies, by the names that `Settings.policy` allows."""

from headkv_vllm.budgets.adakv import ADAKV
from headkv_vllm.budgets.headkv import HEADKV
from headkv_vllm.budgets.headkv_ada import HEADKV_ADA
from headkv_vllm.budgets.policy import Policy
from headkv_vllm.budgets.pyramidkv import PYRAMIDKV
from headkv_vllm.budgets.random_order import RANDOM
from headkv_vllm.budgets.streaming import STREAMING
from headkv_vllm.budgets.uniform import UNIFORM
from headkv_vllm.config import PolicyName

POLICIES: dict[PolicyName, Policy] = {
    "headkv": HEADKV,
    "uniform": UNIFORM,
    "pyramidkv": PYRAMIDKV,
    "random": RANDOM,
    "streaming": STREAMING,
    "adakv": ADAKV,
    "headkv_ada": HEADKV_ADA,
}

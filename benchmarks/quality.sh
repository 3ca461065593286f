#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What each policy loses on the bundled needle model: benchmarks/results/quality.md and its pictures.
# About half an hour on two cores; an interrupted run goes on where it stopped. Arguments go to headkv eval.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup

export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
unset PYTHONDONTWRITEBYTECODE
results=benchmarks/results
ask() { .venv/bin/headkv eval headkv_vllm/needle/checkpoint --lengths 1024 --max-model-len 2048 --dtype float32 \
  --serve-args=--enforce-eager --out .cache/quality "$@"; }

tasks=needle/single,needle/multi-key,needle/multi-value,needle/two-hop,needle/reasoning
grid=(--policies full,headkv,headkv_ada,adakv,pyramidkv,uniform,streaming,random --budgets 64,128,256)
ask --tasks "$tasks" -n 200 "${grid[@]}" "$@"

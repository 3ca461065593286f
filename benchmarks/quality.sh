#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What each policy loses on the bundled needle model: benchmarks/results/quality.md and its pictures.
# An interrupted run goes on where it stopped. Arguments go to headkv eval:
#   benchmarks/quality.sh --policies headkv,uniform --budgets 64
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup

export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
unset PYTHONDONTWRITEBYTECODE
out=.cache/quality
tasks=needle/single,needle/multi-key,needle/multi-value,needle/multi-query,needle/two-hop,needle/reasoning
.venv/bin/headkv eval headkv_vllm/needle/checkpoint --tasks "$tasks" --lengths 1024 -n 200 \
  --policies full,headkv,headkv_ada,adakv,pyramidkv,uniform,streaming,random --budgets 64,128,256 --block-size 16 \
  --settings '{"pooling": "max", "kernel_size": 7}' \
  --dtype float32 --max-model-len 2048 --serve-args=--enforce-eager --out "$out" "$@"

results=benchmarks/results
mkdir -p "$results/quality"
cp "$out"/*.png "$results/quality/"
{
  cat benchmarks/quality-preface.md
  sed '1d' "$out/report.md"
} >"$results/quality.md"

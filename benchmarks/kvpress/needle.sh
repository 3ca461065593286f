#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Our policies beside kvpress's presses on the needle model, both with mean pooling: benchmarks/results/kvpress.md.
# An interrupted run goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/setup

export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
unset PYTHONDONTWRITEBYTECODE
out=.cache/kvpress-needle
# 1,032 tokens leave nothing after the last whole block but the window, so that both sides choose as many.
.venv/bin/headkv eval headkv_vllm/needle/checkpoint --tasks needle/multi-key,needle/multi-query --lengths 1024,1032 -n 200 --seed 41 \
  --policies full,uniform,adakv,pyramidkv,streaming --budgets 64,128,256 --settings '{"pooling": "avg", "kernel_size": 7}' \
  --dtype float32 --max-model-len 2048 --serve-args=--enforce-eager --concurrency 16 --out "$out"
.venv/bin/python -m benchmarks.kvpress "$out" --presses snapkv,adakv,pyramidkv,streaming,keydiff,expected,kvzip

{
  cat benchmarks/kvpress/explained.md
  sed '1d' "$out/kvpress.md"
} >benchmarks/results/kvpress.md

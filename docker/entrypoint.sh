#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the images start: `headkv serve` with what follows the image's name.
# Where that names no model, the bundled needle model is served.
set -euo pipefail
configs=$(dirname "${BASH_SOURCE[0]}")/../configs

names_a_model() {
  local argument
  [[ -n ${1:-} && $1 != -* ]] && return 0
  for argument in "$@"; do
    case $argument in --model | --model=* | --config | --config=* | --help*) return 0 ;; esac
  done
  return 1
}

if ! names_a_model "$@"; then
  set -- "$(headkv needle path)" --served-model-name needle --config "$configs/needle.yaml" "$@"
fi
# In this shell's place, so that SIGTERM comes to the server.
exec headkv serve "$@"

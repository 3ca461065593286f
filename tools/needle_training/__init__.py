# SPDX-License-Identifier: Apache-2.0
"""Trains the needle model that headkv_vllm.needle holds."""

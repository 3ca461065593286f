# SPDX-License-Identifier: Apache-2.0
"""Budgets: how many head blocks every KV head keeps of a prompt."""

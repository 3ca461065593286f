# SPDX-License-Identifier: Apache-2.0
"""Long-context tasks, their metrics, and what a policy and a budget make of them."""

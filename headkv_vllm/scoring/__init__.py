# SPDX-License-Identifier: Apache-2.0
"""Measures how much each attention head of a model retrieves and reasons."""

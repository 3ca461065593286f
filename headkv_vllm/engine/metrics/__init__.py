# SPDX-License-Identifier: Apache-2.0
"""Metrics: the scheduler and the first worker count, `stat_logger` shows the numbers."""

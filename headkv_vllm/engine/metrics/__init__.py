# SPDX-License-Identifier: Apache-2.0
"""Metrics: `definitions` names them, the scheduler and the first worker count, `message` carries
the numbers to the API server, and `stat_logger` shows them on `/metrics`.
"""

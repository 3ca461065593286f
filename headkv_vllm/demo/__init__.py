# SPDX-License-Identifier: Apache-2.0
"""The demonstration: a real server, questions about a long text, and what they held in memory."""

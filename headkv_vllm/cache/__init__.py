# SPDX-License-Identifier: Apache-2.0
"""What a request holds of the KV cache: its row, its head-block tables, and what is kept."""

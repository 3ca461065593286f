# SPDX-License-Identifier: Apache-2.0
"""The compressed KV cache: block-table rows, head-block tables, and the compression of prompts."""

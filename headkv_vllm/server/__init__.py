# SPDX-License-Identifier: Apache-2.0
"""What stands around a running server."""

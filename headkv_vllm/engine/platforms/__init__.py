# SPDX-License-Identifier: Apache-2.0
"""vLLM's platforms, each extended so that it serves with our backend when that is asked for."""

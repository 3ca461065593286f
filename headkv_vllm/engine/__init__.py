# SPDX-License-Identifier: Apache-2.0
"""The plugin: the only part of this package that imports vLLM."""

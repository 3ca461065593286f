# SPDX-License-Identifier: Apache-2.0
"""The `headkv` command: a module for each of its subcommands."""

# SPDX-License-Identifier: Apache-2.0
"""The version of this package, for the files that it writes."""

from importlib.metadata import PackageNotFoundError, version


def tool_version() -> str:
    """Name and version of this package; "unreleased" if it is not installed."""
    try:
        return f"headkv-vllm {version('headkv-vllm')}"
    except PackageNotFoundError:
        return "headkv-vllm unreleased"

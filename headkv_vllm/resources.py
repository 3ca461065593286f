# SPDX-License-Identifier: Apache-2.0
"""The folders of the bundled score files and configurations."""

from pathlib import Path

from headkv_vllm.errors import HeadKVError

_PACKAGE = Path(__file__).parent


def scores_dir() -> Path:
    """Folder of the bundled score files. Raises HeadKVError if it is missing."""
    return data_dir("scores")


def configs_dir() -> Path:
    """Folder of the bundled `vllm serve` configurations. Raises HeadKVError if it is missing."""
    return data_dir("configs")


def data_dir(name: str, package: Path = _PACKAGE) -> Path:
    """The wheel's copy `package/_data/name`, or the checkout's `name` in an editable install.

    The wheel's copy comes first, because other projects' folders lie beside an installed package.
    """
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise HeadKVError(f"{package} has no {name!r} folder: install headkv-vllm again")

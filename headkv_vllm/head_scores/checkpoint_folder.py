# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint's files are: in the user's folder, or in the cache of the Hugging Face hub."""

import os.path
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from headkv_vllm.errors import ModelError, SettingsError, shown
from headkv_vllm.output.libraries import one_line, quiet

NEEDED_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
UNNEEDED_FILES: Final = ("*/*", "consolidated*")
"""Other formats of the same weights, which some repositories have beside them."""


def find_checkpoint_folder(
    model: str, revision: str | None = None, files: tuple[str, ...] = NEEDED_FILES
) -> Path:
    """The folder `model`, or that of the hub's `model` in the cache.

    Of the hub's model those of `files` that the cache lacks are downloaded, with a progress bar.
    Raises ModelError when it is neither or cannot be had, SettingsError for a folder's revision.
    """
    if os.path.isdir(model):
        if revision is not None:
            raise SettingsError(f"--revision is {shown(revision)}, but {model} is a folder")
        return Path(model)
    try:
        with quiet(bars=True):
            return Path(
                snapshot_download(
                    model,
                    revision=revision,
                    allow_patterns=list(files),
                    ignore_patterns=list(UNNEEDED_FILES),
                )
            )
    except HFValidationError:
        reason = "no such folder, and no valid name of a model on the hub"
    except GatedRepoError:
        reason = "on the hub, but its access is restricted: log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "no folder, and not on the hub; a private model needs `hf auth login`"
    except RevisionNotFoundError:
        reason = f"on the hub, but has no revision {shown(revision)}"
    except LocalEntryNotFoundError:
        reason = "no folder, not in the hub's cache, and the hub cannot be reached"
    except Exception as error:  # its own, and those of whichever HTTP library it uses
        reason = f"not to be had from the hub: {one_line(error)}"
    raise ModelError(f"{shown(model)}: {reason}")

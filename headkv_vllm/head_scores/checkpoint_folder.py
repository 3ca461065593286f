# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a checkpoint: in the user's folder, or in the Hugging Face hub's cache."""

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
"""Some repositories have these other formats of the same weights."""


def find_checkpoint_folder(
    model: str, revision: str | None = None, files: tuple[str, ...] = NEEDED_FILES
) -> Path:
    """The folder `model`, or the folder in the hub's cache that has the files of `model`.

    Missing `files` of a hub's model are downloaded, with a progress bar. Raises ModelError when
    there is no such model or the download fails, SettingsError for a revision of a folder.
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
        reason = "no such folder, and not a valid name of a model on the hub"
    except GatedRepoError:
        reason = "access to this model on the hub is restricted: log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "no such folder, and not on the hub; a private model needs `hf auth login`"
    except RevisionNotFoundError:
        reason = f"the model on the hub has no revision {shown(revision)}"
    except LocalEntryNotFoundError:
        reason = "no such folder, not in the hub's cache, and the hub cannot be reached"
    except Exception as error:  # errors of huggingface_hub and of the HTTP library that it uses
        reason = f"the hub's files cannot be loaded: {one_line(error)}"
    raise ModelError(f"{shown(model)}: {reason}")

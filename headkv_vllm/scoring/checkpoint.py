# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face checkpoint, loaded so that its attention can be read."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from headkv_vllm.errors import HeadKVError, ModelError, ScoreFileError, SettingsError, shown
from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder
from headkv_vllm.head_scores.identity import ModelIdentity, identify_checkpoint
from headkv_vllm.head_scores.layer_types import full_attention_layers
from headkv_vllm.output.libraries import one_line, quiet
from headkv_vllm.scoring.attention_rows import ATTENTION
from headkv_vllm.scoring.model_kind import check_kind

DTYPES: Final = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
PICKLES: Final = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that is ready for `measure`, with its tokenizer and its limits.

    stop_ids: the tokens that end an answer.
    max_tokens: the longest prompt, answer included, that the model's positions allow.
    weights: SHA-256 over names, sizes and times of the weight files. It distinguishes models with
        the same identity, such as a fine-tuned model and its base.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity
    weights: str
    stop_ids: frozenset[int]
    max_tokens: int


def load_checkpoint(
    model: str, *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
) -> Checkpoint:
    """Load `model`, a folder or a name on the hub, with transformers. No checkpoint code is run.

    device: cpu, cuda, cuda:N or auto. auto takes all GPUs, or the CPU if there is no GPU.
    dtype: bfloat16, float16, float32 or auto. auto takes the checkpoint's dtype. On a CPU it takes
        float32 instead of float16, which overflows, and instead of bfloat16 if the CPU has no
        instructions for bfloat16 and the memory can hold the weights at twice their size.
    Raises SettingsError for a device or dtype that is not allowed, ModelError for a checkpoint
    that cannot be loaded completely, UnsupportedError for a model whose heads cannot be scored.
    """
    placement, parsed_dtype = _placement(device), _dtype(dtype)
    config = _supported_config(model, revision)
    max_tokens = _max_tokens(config.get_text_config())
    folder = find_checkpoint_folder(model, revision)
    with quiet():
        identity = _identify(folder, config)
        tokenizer = _load_tokenizer(folder)
        loaded = _load_model(folder, config, placement, parsed_dtype)
    return Checkpoint(
        folder=folder,
        model=loaded,
        tokenizer=tokenizer,
        identity=identity,
        weights=_weights_digest(folder),
        stop_ids=_stop_ids(loaded, tokenizer),
        max_tokens=max_tokens,
    )


def _placement(device: str) -> str:
    """`device` as transformers' device_map. Raises SettingsError."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if device not in allowed:
        raise SettingsError(f"--device is {shown(device)}, this machine has {', '.join(allowed)}")
    return "cpu" if device == "auto" and not count else device


def _dtype(dtype: str) -> torch.dtype | str:
    if dtype != "auto" and dtype not in DTYPES:
        allowed = ", ".join(["auto", *DTYPES])
        raise SettingsError(f"--dtype is {shown(dtype)}, allowed are {allowed}")
    return DTYPES.get(dtype, dtype)


def _supported_config(model: str, revision: str | None) -> Any:
    """The config, which is checked before gigabytes of weights are downloaded or read."""
    folder = find_checkpoint_folder(model, revision, ("*config.json",))
    with quiet(), _as_model_error(folder):
        config = _read_config(folder)
        check_kind(config)
    return config


def _read_config(folder: Path) -> Any:
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter: merge it into its model first")
    try:
        model_type = json.loads(path.read_bytes())["model_type"]
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} cannot be read: not valid JSON") from None
    except (KeyError, TypeError):
        raise ModelError(f"{path} has no model_type") from None
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{path}: transformers {transformers.__version__} has no model_type "
            f"{shown(model_type)}, and code of a checkpoint is not run"
        )
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _identify(folder: Path, config: Any) -> ModelIdentity:
    """The identity of the model. Raises ModelError, also when transformers reads other sizes."""
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"{pickles[0]} is a pickle, which can run code when it is loaded; only "
                "safetensors weights are read"
            )
    try:
        identity = identify_checkpoint(folder)
    except ScoreFileError as error:
        raise ModelError(str(error)) from None
    text = config.get_text_config()
    full = full_attention_layers(text.to_dict(), text.num_hidden_layers)
    sizes = len(full), text.num_attention_heads
    if (identity.num_layers, identity.num_heads) != sizes:
        raise ModelError(
            f"{folder / 'config.json'} says {identity.num_layers} layers of {identity.num_heads} "
            f"heads, transformers reads {sizes[0]} of {sizes[1]}"
        )
    return identity


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with _as_model_error(folder, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    # Some classes make an empty tokenizer when there is no file.
    names = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((folder / name).is_file() for name in names):
        raise ModelError(f"{folder} has no tokenizer: expected one of {', '.join(names)}")
    return tokenizer


def _load_model(
    folder: Path, config: Any, placement: str, dtype: torch.dtype | str
) -> PreTrainedModel:
    with _as_model_error(folder):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            attn_implementation=ATTENTION,
            dtype=dtype,
            device_map=None if placement == "cpu" else placement,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_whole(folder, model, info)
    if dtype == "auto" and placement == "cpu" and _better_in_float32(model):
        model = model.float()
    return model.requires_grad_(False)


def _better_in_float32(model: PreTrainedModel) -> bool:
    """Whether a CPU should compute `model` in float32 instead of its own dtype."""
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if model.dtype != torch.bfloat16 or has_bfloat16:
        return bool(model.dtype == torch.float16)
    twice = 2 * sum(int(weight.nbytes) for weight in model.parameters())
    return twice < int(psutil.virtual_memory().available)


def _check_whole(folder: Path, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raises ModelError if weights are missing. transformers warns and makes random ones."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise ModelError(
            f"{folder}: weight {name} has shape {list(found)}, config.json requires "
            f"{list(expected)}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, for example {missing[0]}"
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise ModelError(f"{folder} does not fit into the memory of this machine's GPUs")


def _weights_digest(folder: Path) -> str:
    stats = [(path.name, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    of_model = getattr(model.generation_config, "eos_token_id", None)
    ids = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)


def _max_tokens(text: Any) -> int:
    """The number of the model's positions; with longrope only those of the short range.

    Beyond the short range all earlier keys would have to be rotated again. transformers' cache and
    a prompt that is computed in chunks do not allow that.
    """
    rope = getattr(text, "rope_parameters", None) or {}
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        raise ModelError(
            f"config.json: max_position_embeddings is {shown(positions)}, expected an integer of "
            "at least 1"
        )
    if rope.get("rope_type") == "longrope":
        return int(min(positions, rope.get("original_max_position_embeddings") or positions))
    return positions


@contextmanager
def _as_model_error(path: Path, part: str = "the model") -> Iterator[None]:
    """Turns the many kinds of transformers' exceptions into a ModelError of one line."""
    try:
        yield
    except HeadKVError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: {part} cannot be loaded: {one_line(error)}") from None

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints load whole and measurable, or not at all, with one line that says why."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import LlamaConfig, Phi3Config

from headkv_vllm.errors import ModelError, SettingsError, UnsupportedError
from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.scoring import checkpoint
from headkv_vllm.scoring.checkpoint import load_checkpoint
from headkv_vllm.scoring.measuring import measure
from headkv_vllm.scoring.prompts import PromptTokens
from tests.scoring.checkpoint_edits import (
    NORM,
    UNSUPPORTED,
    UNUSABLE,
    Edit,
    config,
    remove,
    weight,
    write,
)
from tests.scoring.small_models import FAMILIES, TINY, small_checkpoint


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint per family."""
    folder = tmp_path_factory.mktemp("saved")
    for name, sizes in FAMILIES.items():
        small_checkpoint(folder / name, sizes)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a family's checkpoint and edits the copy."""

    def copy_edited(edit: Edit, family: str = "llama") -> Path:
        folder = shutil.copytree(saved / family, tmp_path / "model")
        edit(folder)
        return folder

    return copy_edited


@pytest.mark.parametrize("family", FAMILIES)
def test_families_load_and_hand_over_attention(saved: Path, family: str) -> None:
    loaded = load_checkpoint(str(saved / family))
    assert loaded.identity == identify_checkpoint(saved / family)
    assert loaded.stop_ids == {1} and loaded.max_tokens == TINY["max_position_embeddings"]
    assert loaded.folder == saved / family and not loaded.model.training
    ids = loaded.tokenizer.encode("grüß")
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "grüß"
    prompt = PromptTokens(tuple(ids), evidence=tuple(range(len(ids))), answer_ids=(3,))
    scores = measure(loaded.model, prompt, "r2", "forced", frozenset()).scores
    assert scores.shape == (loaded.identity.num_layers, loaded.identity.num_heads)
    np.testing.assert_allclose(scores, 1 / len(ids), rtol=1e-5)  # all attention is on evidence


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_checkpoints_are_refused(copy: Callable[..., Path], case: str) -> None:
    edit, message = UNUSABLE[case]
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(str(copy(edit)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models_are_refused(copy: Callable[..., Path], case: str) -> None:
    edit, message = UNSUPPORTED[case]
    with pytest.raises(UnsupportedError, match=message) as caught:
        load_checkpoint(str(copy(edit)))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_made_of_nothing_is_refused(copy: Callable[..., Path]) -> None:
    """transformers gives this family an empty one."""
    folder = copy(remove("tokenizer.json", "tokenizer_config.json"), "qwen3")
    with pytest.raises(ModelError, match=r"has no tokenizer: .* tokenizer\.json"):
        load_checkpoint(str(folder))


WINDOW = {"sliding_window": 64, "layer_types": None}


@pytest.mark.parametrize(
    ("family", "values", "refused"),
    [
        ("mistral", {"sliding_window": 511}, True),
        ("mistral", {"sliding_window": 512}, False),
        ("mistral", {"sliding_window": None}, False),
        ("qwen3", {**WINDOW, "use_sliding_window": False}, False),
        ("qwen3", {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}, False),
        ("qwen3", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}, False),
    ],
)
def test_windows(
    copy: Callable[..., Path], family: str, values: dict[str, Any], refused: bool
) -> None:
    folder = str(copy(config(**values), family))
    if refused:
        with pytest.raises(UnsupportedError, match=f"window of {values['sliding_window']} of 512"):
            load_checkpoint(folder)
    else:
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("saved_in", "asked_for", "computed_in"),
    [
        ("float32", "auto", "float32"),
        ("float16", "auto", "float32"),
        ("float16", "float16", "float16"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_dtypes_on_the_cpu(tmp_path: Path, saved_in: str, asked_for: str, computed_in: str) -> None:
    folder = small_checkpoint(tmp_path, FAMILIES["llama"], getattr(torch, saved_in))
    model = load_checkpoint(str(folder), device="cpu", dtype=asked_for).model
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, computed_in)}
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    stored = load_file(folder / "model.safetensors")[NORM]
    assert torch.equal(model.model.norm.weight, stored.to(getattr(torch, computed_in)))


@pytest.mark.parametrize(
    ("instruction", "gib", "computed_in"),
    [(None, 64, "float32"), ("avx512_bf16", 64, "bfloat16"), (None, 0, "bfloat16")],
)
def test_bfloat16_needs_a_cpu_that_has_it_or_memory_for_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    instruction: str | None,
    gib: int,
    computed_in: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True, "avx2": True})
    free = SimpleNamespace(available=gib * 2**30)
    monkeypatch.setattr(checkpoint.psutil, "virtual_memory", lambda: free)
    folder = small_checkpoint(tmp_path, FAMILIES["llama"], torch.bfloat16)
    model = load_checkpoint(str(folder)).model
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, computed_in)}


@pytest.mark.parametrize("dtype", ["float64", "int8", "", "fp16"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(SettingsError, match=f"--dtype is '{dtype}', allowed are auto, bfloat16"):
        load_checkpoint("unread", dtype=dtype)


@pytest.mark.parametrize("device", ["cuda:99", "mps", "meta", "", "gpu"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(SettingsError, match=f"--device is '{device}', this machine has auto, cpu"):
        load_checkpoint("unread", device=device)


def test_tied_weights_are_whole(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path, LlamaConfig(**TINY, tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_checkpoint(str(folder)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("eos", "stop_ids"), [(7, {1, 7}), ([5, 6], {1, 5, 6}), (None, {1})])
def test_stop_ids(copy: Callable[..., Path], eos: object, stop_ids: set[int]) -> None:
    folder = copy(write("generation_config.json", json.dumps({"eos_token_id": eos})))
    assert load_checkpoint(str(folder)).stop_ids == stop_ids


def test_prompts_end_where_longrope_changes(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    long = Phi3Config(**TINY, rope_parameters=rope, original_max_position_embeddings=128)
    assert load_checkpoint(str(small_checkpoint(tmp_path, long))).max_tokens == 128


def test_weights_tell_checkpoints_apart(copy: Callable[..., Path]) -> None:
    folder = copy(config())
    first = load_checkpoint(str(folder))
    assert load_checkpoint(str(folder)).weights == first.weights
    weight(NORM, torch.full((32,), 0.5))(folder)
    second = load_checkpoint(str(folder))
    assert second.weights != first.weights and second.identity == first.identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no-such-model",
            "'no-such-model': no such folder, not in the hub's cache, and the",
        ),
        ("org/no-such-model", "'org/no-such-model': no such folder, not in the hub's cache"),
        ("./no/such/folder", "'./no/such/folder': no such folder, and not a valid name"),
        ("two words", "'two words': no such folder, and not a valid name"),
    ],
)
def test_names_that_are_no_model(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        find_checkpoint_folder(name)
    assert "\n" not in str(caught.value)


def test_the_hubs_cache_is_found(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--org--name"
    shutil.copytree(saved / "llama", cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert find_checkpoint_folder("org/name") == cached / "snapshots" / "abc"
    assert find_checkpoint_folder("org/name", "main") == cached / "snapshots" / "abc"
    with pytest.raises(ModelError, match="not in the hub's cache"):
        find_checkpoint_folder("org/name", "v2")


def test_a_folder_has_no_revision(saved: Path) -> None:
    with pytest.raises(SettingsError, match=r"--revision is 'v2', but .*llama is a folder"):
        find_checkpoint_folder(str(saved / "llama"), "v2")


NOISY = (
    *("own code", "bad sizes", "too few weights", "wrong shape", "truncated", "no tokenizer"),
    *("bert, said to be causal", "gpt-oss", "gpt-oss, full"),
)
"""Cases that transformers logs, warns or asks about."""
SCRIPT = """
import sys
from headkv_vllm.errors import HeadKVError
from headkv_vllm.scoring.checkpoint import load_checkpoint
for folder in sys.argv[1:]:
    try:
        print("loaded", load_checkpoint(folder).model.dtype)
    except HeadKVError as error:
        print("refused", error)
"""


@pytest.mark.slow
def test_nothing_but_the_error_is_printed(saved: Path, tmp_path: Path) -> None:
    """In a process of its own, where no test framework holds the libraries' logs."""
    edits = [config(), *(edit for edit, _ in map({**UNUSABLE, **UNSUPPORTED}.get, NOISY))]
    folders = [tmp_path / str(number) for number in range(len(edits))]
    for folder, edit in zip(folders, edits, strict=True):
        edit(shutil.copytree(saved / "llama", folder))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, folders)], capture_output=True, text=True
    )
    first, *others = done.stdout.splitlines()
    assert done.stderr == "" and first == "loaded torch.float32"
    assert len(others) == len(folders) - 1
    assert all(line.startswith("refused ") for line in others)

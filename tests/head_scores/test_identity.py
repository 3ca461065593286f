# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import struct

import pytest

from headkv_vllm.errors import ScoreFileError
from headkv_vllm.head_scores.identity import identify, identify_checkpoint, read_weight_shapes

SHAPES = {"embed.weight": (10, 32), "norm.weight": (32,)}
BAD_CONFIGS = [
    ({"architectures": None}, "architectures is None"),
    ({"architectures": []}, "architectures is []"),
    ({"num_hidden_layers": None}, "num_hidden_layers is None"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
    ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple"),
    ({"hidden_size": None}, "hidden_size is None"),
    ({"hidden_size": 3}, "hidden_size 3 must be a multiple of num_attention_heads 4"),
    ({"head_dim": -1}, "head_dim is -1"),
]


def test_sizes_come_from_the_config(config):
    identity = identify(config, SHAPES)
    assert identity.architecture == "LlamaForCausalLM"
    sizes = (identity.num_layers, identity.num_heads, identity.num_kv_heads, identity.head_size)
    assert sizes == (3, 4, 2, 8)


def test_head_dim_wins_over_hidden_size(config):
    assert identify({**config, "head_dim": 64}, SHAPES).head_size == 64
    assert identify({**config, "head_dim": None}, SHAPES).head_size == 8


def test_without_num_key_value_heads_every_head_has_its_own(config):
    del config["num_key_value_heads"]
    assert identify(config, SHAPES).num_kv_heads == 4


def test_a_multimodal_config_gives_the_language_models_sizes(config):
    nested = {
        "architectures": config.pop("architectures"),
        "hidden_size": 64,
        "text_config": config,
    }
    assert identify(nested, SHAPES).head_size == 8


@pytest.mark.parametrize(("change", "named"), BAD_CONFIGS, ids=str)
def test_a_config_without_usable_sizes_is_refused(config, change, named):
    with pytest.raises(ScoreFileError) as caught:
        identify({**config, **change}, SHAPES)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_is_the_documented_hash(config):
    text = '["LlamaForCausalLM",[3,4,2,8],[["embed.weight",[10,32]],["norm.weight",[32]]]]'
    assert identify(config, SHAPES).fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_the_fingerprint_depends_on_names_shapes_and_sizes_but_not_on_order(config):
    def digest(shapes=SHAPES, **change):
        return identify({**config, **change}, shapes).fingerprint

    reordered = dict(reversed(list(SHAPES.items())))
    assert digest(reordered) == digest()
    others = [
        digest({**SHAPES, "embed.weight": (32, 10)}),
        digest({"embed": (10, 32), "norm.weight": (32,)}),
        digest({**SHAPES, "bias": (1,)}),
        digest(architectures=["MistralForCausalLM"]),
        digest(num_hidden_layers=4),
        digest(num_key_value_heads=4),
        digest(head_dim=16),
    ]
    assert len({digest(), *others}) == len(others) + 1


def test_a_checkpoints_fingerprint_does_not_depend_on_path_or_sharding(checkpoint, tmp_path):
    single = checkpoint(tmp_path / "a")
    moved = checkpoint(tmp_path / "some" / "where else")
    halves = [{name: shape} for name, shape in SHAPES.items()]
    shards = {f"model-0000{i}-of-00002.safetensors": half for i, half in enumerate(halves)}
    sharded = checkpoint(tmp_path / "b", shards)
    assert read_weight_shapes(sharded) == SHAPES
    assert identify_checkpoint(single) == identify_checkpoint(moved) == identify_checkpoint(sharded)


def test_weights_beside_the_model_are_not_read(checkpoint, tmp_path):
    extra = {"model.safetensors": SHAPES, "consolidated.safetensors": {"other": (1,)}}
    folder = checkpoint(tmp_path / "a", extra)
    (folder / "model.safetensors.index.json").unlink()
    assert read_weight_shapes(folder) == SHAPES


def test_shapes_of_types_that_numpy_lacks_are_read(tmp_path):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(12)
    )
    assert read_weight_shapes(tmp_path) == {"w": (2, 3)}


def _refusal(folder):
    with pytest.raises(ScoreFileError) as caught:
        identify_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_safetensors_is_refused(checkpoint, tmp_path):
    folder = checkpoint(tmp_path / "a")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "expected model.safetensors or model.safetensors.index.json" in _refusal(folder)


def test_a_truncated_header_is_refused(checkpoint, tmp_path):
    folder = checkpoint(tmp_path / "a")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    assert "not a readable safetensors file" in _refusal(folder)


def test_a_missing_shard_is_refused(checkpoint, tmp_path):
    folder = checkpoint(tmp_path / "a", {"1.safetensors": SHAPES, "2.safetensors": {"w": (1,)}})
    (folder / "2.safetensors").unlink()
    assert "2.safetensors" in _refusal(folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_names_no_shards_is_refused(checkpoint, tmp_path, text):
    folder = checkpoint(tmp_path / "a")
    (folder / "model.safetensors.index.json").write_text(text)
    assert "no weight_map" in _refusal(folder)


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "not valid JSON"), ("[]", "JSON object"), (None, "No such file")]
)
def test_an_unreadable_config_is_refused(checkpoint, tmp_path, text, expected):
    folder = checkpoint(tmp_path / "a")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert expected in _refusal(folder)

# SPDX-License-Identifier: Apache-2.0
"""What cannot be served is refused at start-up, in one line, before any weight is read."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from vllm import ModelRegistry
from vllm.model_executor.models.registry import _ModelInfo

from headkv_vllm.engine.attention import cpu_cache
from headkv_vllm.errors import HeadKVError, ScoreFileError, SettingsError, UnsupportedError
from headkv_vllm.head_scores.file import Provenance, ScoredModel, ScoreFile, write_score_file
from headkv_vllm.head_scores.identity import identify_checkpoint
from tests.engine.helpers.bookkeeping_engine import engine_config, write_model


@pytest.fixture(autouse=True)
def resolve_models_in_this_process(monkeypatch):
    """vLLM would start a process for each model class, only to see what it supports."""
    lazily_registered = type(ModelRegistry.models["LlamaForCausalLM"])

    def inspect_model_cls(self):
        return _ModelInfo.from_model_cls(self.load_model_cls())

    monkeypatch.setattr(lazily_registered, "inspect_model_cls", inspect_model_cls)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def refusal(error_class, *arguments, **flags):
    """The one line with which our part of vLLM's start-up refuses."""
    with pytest.raises(HeadKVError) as raised:
        engine_config(*arguments, **flags)
    assert type(raised.value) is error_class
    line = str(raised.value)
    assert "\n" not in line
    return line


def like_llama(model_type, architecture, **changes):
    return {"model_type": model_type, "architectures": [architecture], "head_dim": 16, **changes}


SLIDING = ["sliding_attention", "full_attention"]
SHORT = {"max_model_len": 64}
MODELS = {
    "Mistral with a sliding window": (
        like_llama("mistral", "MistralForCausalLM", sliding_window=64),
        "sliding-window attention (2 of 2 layers)",
    ),
    "Qwen2 with a sliding window in some layers": (
        like_llama(
            "qwen2",
            "Qwen2ForCausalLM",
            use_sliding_window=True,
            sliding_window=64,
            max_window_layers=1,
        ),
        "vLLM gives the layers of this model one kind of attention",
    ),
    "Gemma 3, with windows of two sizes": (
        like_llama(
            "gemma3_text",
            "Gemma3ForCausalLM",
            sliding_window=64,
            layer_types=SLIDING,
            sliding_windows=[32, 64],
        ),
        "its layers have windows of different sizes",
    ),
    "Gemma 3, with more heads in its full layer": (
        like_llama(
            "gemma3_text",
            "Gemma3ForCausalLM",
            sliding_window=64,
            layer_types=SLIDING,
            num_attention_heads_per_layer=[4, 8],
        ),
        "layers of different sizes: total_num_attention_heads of layer 1 is 8, and 4 of the model",
    ),
    "Gemma 3n, whose last layers share caches": (
        like_llama(
            "gemma3n_text",
            "Gemma3nForCausalLM",
            sliding_window=64,
            layer_types=SLIDING,
            num_kv_shared_layers=1,
            intermediate_size=[64, 64],
            activation_sparsity_pattern=[0.0, 0.0],
        ),
        "layers that share another layer's KV cache (1)",
    ),
    "Qwen2.5-1M": (
        like_llama("qwen2", "Qwen2ForCausalLM", dual_chunk_attention_config={"chunk_size": 64}),
        "dual chunk attention",
    ),
    "Gemma 3, with most layers of full attention": (
        like_llama(
            "gemma3_text",
            "Gemma3ForCausalLM",
            sliding_window=64,
            num_hidden_layers=3,
            layer_types=[*SLIDING, "full_attention"],
        ),
        "vLLM distributes these numbers of layers",
    ),
    "Gemma 3, with a group that would be padded": (
        like_llama(
            "gemma3_text",
            "Gemma3ForCausalLM",
            sliding_window=64,
            num_hidden_layers=7,
            layer_types=[*SLIDING * 3, "sliding_attention"],
        ),
        "vLLM distributes these numbers of layers",
    ),
    "Qwen3-Next, with linear attention in some layers": (
        like_llama(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            layer_types=["linear_attention", "full_attention"],
        ),
        "hybrid models",
    ),
    "Mamba, without attention": (like_llama("mamba", "MambaForCausalLM"), "hybrid models"),
    "DeepSeek-V2": (
        like_llama(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            num_key_value_heads=4,
            kv_lora_rank=32,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=16,
        ),
        "MLA",
    ),
    "BLOOM": (like_llama("bloom", "BloomForCausalLM", n_layer=2, n_head=4), "ALiBi"),
    "Falcon with ALiBi": (
        {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": True},
        "ALiBi",
    ),
    "Whisper": (
        {
            "model_type": "whisper",
            "architectures": ["WhisperForConditionalGeneration"],
            "d_model": 64,
            "max_target_positions": 128,
        },
        "encoder-decoder models",
    ),
    "BERT": (like_llama("bert", "BertModel"), "pooling models"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_compressed_is_refused(tmp_path, name):
    changes, named = MODELS[name]
    model = write_model(tmp_path / "model", **changes)
    line = refusal(UnsupportedError, model, {}, **SHORT)
    assert line.startswith("--attention-backend headkv does not support ")
    assert named in line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"disable_sliding_window": True}, "leave out --disable-sliding-window"),
        (
            {"disable_hybrid_kv_cache_manager": True},
            "leave out --disable-hybrid-kv-cache-manager",
        ),
    ],
    ids=["window", "manager"],
)
def test_flags_that_change_sliding_windows_are_refused(tmp_path, flags, named):
    gemma = like_llama("gemma3_text", "Gemma3ForCausalLM", sliding_window=64, layer_types=SLIDING)
    model = write_model(tmp_path / "model", **gemma)
    assert named in refusal(UnsupportedError, model, {}, **SHORT, **flags)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        like_llama("mistral", "MistralForCausalLM", sliding_window=None),
        like_llama("qwen2", "Qwen2ForCausalLM", use_sliding_window=False, sliding_window=64),
        like_llama("qwen3", "Qwen3ForCausalLM"),
        like_llama("gemma3_text", "Gemma3ForCausalLM", sliding_window=64, layer_types=SLIDING),
        like_llama("gemma2", "Gemma2ForCausalLM", sliding_window=64),
        like_llama("gpt_oss", "GptOssForCausalLM", layer_types=SLIDING),
        like_llama("granite", "GraniteForCausalLM", attention_sinks=True),
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_head": 4},
    ],
    ids=["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma 3", "Gemma 2", "gpt-oss", "Granite", "GPT-2"],
)
def test_a_decoder_with_full_attention_is_accepted(tmp_path, changes):
    model = write_model(tmp_path / "model", **changes)
    assert engine_config(model, {}).scheduler_config.scheduler_cls.endswith(".HeadKVScheduler")


CONNECTOR = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
FLAGS = [
    ({"kv_transfer_config": CONNECTOR}, "--kv-transfer-config"),
    ({"kv_offloading_size": 1}, "--kv-offloading-size"),
    # Context parallelism of decoding asks vLLM itself for more ranks than KV heads.
    (
        {"decode_context_parallel_size": 2, "tensor_parallel_size": 4},
        "--decode-context-parallel-size (2)",
    ),
    ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size (2)"),
    ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype ('fp8')"),
    ({"kv_cache_dtype": "bfloat16"}, "--kv-cache-dtype ('bfloat16')"),
    ({"kv_cache_dtype_skip_layers": ["0"]}, "--kv-cache-dtype-skip-layers"),
    ({"enable_return_routed_experts": True}, "--enable-return-routed-experts"),
    ({"ubatch_size": 2}, "--enable-dbo and --ubatch-size"),
    ({"block_size": 24}, "--block-size (24)"),
    ({"block_size": 8}, "--block-size (8)"),
    ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "--scheduler-cls"),
    ({"runner": "pooling"}, "pooling models"),
    (
        {"attention_config": {"backend_per_kind": {"full_attention": "HEADKV"}}},
        "backend_per_kind",
    ),
    ({"max_num_batched_tokens": 7, "max_num_seqs": 4}, "--max-num-batched-tokens 7"),
    ({"long_prefill_token_threshold": 7}, "--long-prefill-token-threshold 7"),
]


@pytest.mark.parametrize(("flags", "named"), FLAGS, ids=[named for _, named in FLAGS])
def test_a_flag_that_does_not_go_with_the_backend_is_refused(model, flags, named):
    assert named in refusal(UnsupportedError, model, {}, **flags)


SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
COMPRESSED_TENSORS = {"quant_method": "compressed-tensors", "format": "float-quantized"}
CHECKPOINTS = {
    "compressed-tensors": {
        **COMPRESSED_TENSORS,
        "kv_cache_scheme": {**SCHEME, "strategy": "tensor"},
    },
    "compressed-tensors, by head": {
        **COMPRESSED_TENSORS,
        "kv_cache_scheme": {**SCHEME, "strategy": "attn_head"},
    },
    "ModelOpt": {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_declares_a_quantised_cache_is_told_what_to_set(tmp_path, name):
    checkpoint = write_model(tmp_path / "model", quantization_config=CHECKPOINTS[name])
    config = {"dtype": "bfloat16", "quantization": None}
    line = refusal(UnsupportedError, checkpoint, {}, **config)
    assert "this checkpoint declares" in line and "set --kv-cache-dtype" in line
    assert ("scales for each head" in line) == name.endswith("by head")
    served = engine_config(checkpoint, {}, kv_cache_dtype="bfloat16", **config)
    assert served.scheduler_config.scheduler_cls is not None


@pytest.mark.parametrize("isa", ["neon", "rvv", "vsx", "vxe"])
def test_a_cpu_with_another_packing_is_refused_before_the_model_is_read(model, monkeypatch, isa):
    monkeypatch.setattr(cpu_cache, "_get_attn_isa", lambda *_: isa)
    line = refusal(UnsupportedError, model, {})
    assert line == (
        f"--attention-backend headkv cannot read the packing of instruction set '{isa}': "
        "allowed are vec, vec16, amx"
    )


@pytest.mark.parametrize("method", ["eagle", "draft_model"])
def test_drafting_by_a_model_is_refused(model, method):
    drafter = {"method": method, "model": str(model), "num_speculative_tokens": 2}
    line = refusal(UnsupportedError, model, {}, speculative_config=drafter)
    assert "speculative decoding" in line and method in line


NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}


def test_a_window_of_one_token_would_be_read_beside_drafts(model):
    line = refusal(UnsupportedError, model, {"window": 1}, speculative_config=NGRAM)
    assert "window=1 with this platform, model and speculation: it must be at least 2" in line
    assert engine_config(model, {"window": 1}).scheduler_config.scheduler_cls is not None


@pytest.mark.parametrize(
    "flags",
    [
        {"block_size": 48},
        {"kv_cache_dtype": "bfloat16", "dtype": "bfloat16"},
        {"max_num_batched_tokens": 8, "max_num_seqs": 4},
        {"long_prefill_token_threshold": 8},
        {"tensor_parallel_size": 2},
        {"speculative_config": NGRAM},
    ],
    ids=str,
)
def test_what_is_just_allowed_is_accepted(model, flags):
    assert engine_config(model, {}, **flags).scheduler_config.scheduler_cls is not None


SETTINGS = [
    ({"budget": -1}, "budget=-1"),
    ({"budget": 8}, "budget=8"),
    ({"budget": "many"}, "budget='many'"),
    ({"budget": 64, "keep_ratio": 0.5}, "exclude each other"),
    ({"keep_ratio": 0}, "keep_ratio=0"),
    ({"keep_ratio": 1.5}, "keep_ratio=1.5"),
    ({"beta": 1}, "beta=1"),
    ({"window": 0}, "window=0"),
    ({"kernel_size": 4}, "kernel_size=4"),
    ({"pooling": "sum"}, "pooling='sum'"),
    ({"gqa_fold": "min"}, "gqa_fold='min'"),
    ({"min_blocks": 0}, "min_blocks=0"),
    ({"policy": "snapkv"}, "policy='snapkv'"),
    ({"scores": ""}, "scores=''"),
    ({"buget": 64}, "did you mean 'budget'"),
]


@pytest.mark.parametrize(("settings", "named"), SETTINGS, ids=[named for _, named in SETTINGS])
def test_a_setting_that_is_not_allowed_is_refused(model, settings, named):
    assert named in refusal(SettingsError, model, settings)


def test_settings_that_are_no_mapping_are_refused(model):
    line = refusal(SettingsError, model, {}, additional_config={"headkv": ["budget"]})
    assert "must be a mapping" in line


@pytest.fixture
def checkpoint(model):
    """The model folder with a file of weights, so that score files can be matched with it."""
    save_file({"weight": np.zeros((2, 2), np.float32)}, model / "model.safetensors")
    return model


@pytest.fixture
def scores(checkpoint, tmp_path):
    """A score file for `checkpoint`, whose second KV head of the first layer scores highest."""
    path = tmp_path / "scores.json"
    file = ScoreFile(
        schema_version=1,
        model=ScoredModel(name="tiny", identity=identify_checkpoint(checkpoint)),
        method="made up",
        provenance=Provenance(tool_version="1"),
        scores=[[0, 0, 2, 4], [1, 1, 1, 1]],
    )
    write_score_file(path, file)
    return path


def test_a_fitting_score_file_is_folded_and_sent_to_the_workers(checkpoint, scores):
    config = engine_config(checkpoint, {"scores": str(scores)})
    assert config.additional_config["headkv_scores"]["values"] == [[0, 0.75], [0.25, 0.25]]


def test_a_missing_score_file_is_refused(checkpoint):
    line = refusal(ScoreFileError, checkpoint, {"scores": "/none/such.json"})
    assert "no score file '/none/such.json'" in line and "bundled one: needle" in line


def test_a_truncated_score_file_is_refused(checkpoint, scores):
    scores.write_bytes(scores.read_bytes()[:-20])
    assert "not valid JSON" in refusal(ScoreFileError, checkpoint, {"scores": str(scores)})


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -1.0])
def test_scores_that_are_no_finite_positive_numbers_are_refused(checkpoint, scores, score):
    document = json.loads(scores.read_text())
    document["scores"][1][2] = score
    scores.write_text(json.dumps(document))
    assert "scores[1][2]" in refusal(ScoreFileError, checkpoint, {"scores": str(scores)})


def test_a_score_file_of_another_model_is_refused(checkpoint, scores):
    write_model(checkpoint, num_key_value_heads=4)
    line = refusal(ScoreFileError, checkpoint, {"scores": str(scores)})
    assert "num_kv_heads 2, this model has 4" in line


def test_a_model_without_readable_weights_is_matched_by_its_sizes(checkpoint, scores):
    """As one is whose weights are in another format, if the user names the file."""
    (checkpoint / "model.safetensors").unlink()
    config = engine_config(checkpoint, {"scores": str(scores)})
    assert config.additional_config["headkv_scores"]["values"] == [[0, 0.75], [0.25, 0.25]]
    assert engine_config(checkpoint, {}).additional_config["headkv_scores"]["uniform"]
    write_model(checkpoint, num_key_value_heads=4)
    (checkpoint / "model.safetensors").unlink(missing_ok=True)
    line = refusal(ScoreFileError, checkpoint, {"scores": str(scores)})
    assert "num_kv_heads 2, this model has 4" in line


def test_without_our_backend_nothing_is_refused(tmp_path):
    """What another backend is asked to serve is none of our business."""
    model = write_model(tmp_path / "model", **MODELS["Mistral with a sliding window"][0])
    flags = {"attention_backend": None, "block_size": 24, "max_num_batched_tokens": 64}
    config = engine_config(model, {"budget": -1}, **flags, max_num_seqs=4)
    assert config.scheduler_config.scheduler_cls is None

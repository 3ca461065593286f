# SPDX-License-Identifier: Apache-2.0
"""Which requests are checked in a process, by the engine that was configured in it last."""

import pytest
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform

from headkv_vllm.engine import request_checks
from headkv_vllm.errors import UnsupportedError
from tests.engine.helpers.bookkeeping_engine import engine_config, write_model

BAD = {"headkv_budget": 5}
REFUSAL = r"headkv_budget=5 is not allowed: .* \(parameter=headkv_budget, value=5\)"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def ours(model):
    return engine_config(model, {"budget": 64})


def test_a_bad_argument_is_refused_as_soon_as_it_is_read(ours):
    with pytest.raises(VLLMValidationError, match=REFUSAL) as refused:
        SamplingParams(extra_args=BAD)
    assert refused.value.parameter == "headkv_budget"
    SamplingParams(extra_args={"headkv_budget": 9, "session_id": "x"})


def test_what_was_read_earlier_is_refused_by_the_platform(ours):
    params = SamplingParams()
    params.extra_args = BAD
    with pytest.raises(VLLMValidationError, match=REFUSAL):
        current_platform.validate_request({}, params)


def test_vllms_own_check_goes_on(ours):
    with pytest.raises(VLLMValidationError, match="integers must be between"):
        SamplingParams(extra_args={"other": 2**70})


def test_the_last_engine_that_was_configured_decides(ours, model):
    engine_config(model, {"budget": 64, "min_budget": 32})
    with pytest.raises(VLLMValidationError, match="an integer of at least 32"):
        SamplingParams(extra_args={"headkv_budget": 9})
    engine_config(model, {}, attention_backend="CPU_ATTN", block_size=32)
    assert SamplingParams(extra_args=BAD).extra_args == BAD
    current_platform.validate_request({}, SamplingParams(extra_args=BAD))


def test_a_configuration_without_a_model_changes_nothing(ours):
    VllmConfig()
    with pytest.raises(VLLMValidationError, match=REFUSAL):
        SamplingParams(extra_args=BAD)


def test_where_vllm_has_no_such_check_the_platform_refuses_alone(ours, monkeypatch):
    monkeypatch.setattr(request_checks, "_verify_extra_args", None)
    monkeypatch.delattr(SamplingParams, "_verify_extra_args")
    request_checks.check_early(lambda params: None)
    assert not hasattr(SamplingParams, "_verify_extra_args")


def test_a_server_that_cannot_compress_again_says_why(ours, model):
    """A head block of 16 tokens has no room for the queries of 40 query heads per KV head."""
    heads = {"num_attention_heads": 40, "num_key_value_heads": 1, "hidden_size": 640}
    wide = write_model(model / "wide", **heads)
    engine_config(wide, {"budget": 64})
    with pytest.raises(VLLMValidationError, match="it must be 0, because with blocks"):
        SamplingParams(extra_args={"headkv_compress_every": 64})
    assert SamplingParams(extra_args={"headkv_compress_every": 0, "headkv_budget": 64})
    with pytest.raises(UnsupportedError, match="compress_every=64: with blocks of 16 tokens"):
        engine_config(wide, {"budget": 64, "compress_every": 64})

# SPDX-License-Identifier: Apache-2.0
"""Output that begins with forced tokens, in a real server: forced, then free, else refused."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from headkv_vllm.engine.forced_tokens import ForcedTokens
from headkv_vllm.engine.names import FORCED_TOKENS_CLASS
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import NeedleSample, generate_samples
from headkv_vllm.needle.vocabulary import BOS, TOKEN_IDS
from headkv_vllm.request_overrides import FORCED_TOKENS
from tests.engine.helpers.server import Server

NUM_TOKENS = 300
BAD_VALUES: list[Any] = [7, "seven", [], [-1], [1.5], ["7"], [[7]], {"7": 7}, list(range(1, 41))]


def params(value: object, max_tokens: int | None = 16) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, extra_args={FORCED_TOKENS: value})


class TestOneRequest:
    @pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
    def test_bad_values_are_refused_in_one_line(self, value: object) -> None:
        with pytest.raises(VLLMValidationError, match=FORCED_TOKENS) as raised:
            ForcedTokens.validate_params(params(value))
        assert "\n" not in str(raised.value)

    def test_requests_without_forced_tokens_are_left_alone(self) -> None:
        processor = ForcedTokens(None, torch.device("cpu"), False)
        for free in (SamplingParams(), SamplingParams(extra_args={"other": 1})):
            ForcedTokens.validate_params(free)
            assert processor.new_req_logits_processor(free) is None

    def test_each_step_allows_its_token_alone_and_later_ones_all(self) -> None:
        ForcedTokens.validate_params(params([3, 1]))
        forcing = ForcedTokens(None, torch.device("cpu"), False).new_req_logits_processor(
            params([3, 1])
        )
        assert forcing is not None
        for output, expected in (([], 3), ([-1], 1)):
            logits = forcing(output, torch.tensor([5.0, 4.0, 3.0, 2.0]))
            assert logits.isfinite().nonzero().flatten().tolist() == [expected]
        assert forcing([3, 1], torch.tensor([5.0, 4.0])).tolist() == [5.0, 4.0]

    def test_a_token_that_the_model_lacks_forces_nothing(self) -> None:
        forcing = ForcedTokens(None, torch.device("cpu"), False).new_req_logits_processor(
            params([1, 4])
        )
        assert forcing is not None
        assert forcing([], torch.arange(4.0)).tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    settings = json.dumps({"headkv": {"budget": 64}})
    arguments = ["--attention-backend", "headkv", "--additional-config", settings]
    # Chunks shorter than a prompt: their steps must not count as output.
    arguments += ["--max-num-batched-tokens", "256", "--max-num-seqs", "4"]
    arguments += ["--dtype", "float32", "--enforce-eager", "--block-size", "16"]
    arguments += ["--max-model-len", "1024", "--logits-processors", FORCED_TOKENS_CLASS]
    with Server(checkpoint_path(), *arguments) as running:
        yield running


def complete(server: Server, prompt: Any, forced: object = None, max_tokens: int = 12) -> Any:
    extra: dict[str, Any] = {"return_token_ids": True}
    if forced is not None:
        extra["vllm_xargs"] = {FORCED_TOKENS: forced}
    return (
        server.client.completions.create(
            model=server.model,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0,
            extra_body=extra,
        )
        .choices[0]
        .model_dump()
    )


def split(sample: NeedleSample) -> tuple[list[int], list[int]]:
    """Token ids of the context, and of the question."""
    words = [BOS, *sample.prompt.split()]
    asked = len(words) - 1 - words[::-1].index("?")
    ids = [TOKEN_IDS[word] for word in words]
    return ids[:asked], ids[asked:]


@pytest.fixture(scope="module")
def asked() -> list[NeedleSample]:
    return list(generate_samples("multi-key", NUM_TOKENS, 8, seed=5))


@pytest.mark.engine
@pytest.mark.slow
class TestServed:
    def test_forced_first_and_then_the_answer(
        self, server: Server, asked: list[NeedleSample]
    ) -> None:
        """At the same time as each other, and as requests that force nothing."""

        def ask(sample: NeedleSample) -> tuple[Any, Any]:
            context, question = split(sample)
            forced = complete(server, context, question, len(question) + 12)
            return forced, complete(server, sample.prompt)

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, asked))
        right = 0
        for sample, (forced, free) in zip(asked, answers, strict=True):
            question = split(sample)[1]
            assert forced["token_ids"][: len(question)] == question
            right += sample.answer.strip() in forced["text"]
            assert free["text"].split()[0] in sample.keys  # an answer, not a forced "?"
        assert right >= 4  # of 8: the context's end, not the question, chose what was kept

    @pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
    def test_bad_values_are_400_and_the_server_goes_on(
        self, server: Server, asked: list[NeedleSample], value: object
    ) -> None:
        with pytest.raises(openai.BadRequestError):
            complete(server, asked[0].prompt, value, max_tokens=16)
        assert complete(server, asked[0].prompt)["text"]

    def test_a_token_beyond_the_vocabulary_does_not_end_the_server(
        self, server: Server, asked: list[NeedleSample]
    ) -> None:
        free = complete(server, asked[0].prompt)
        assert complete(server, asked[0].prompt, [2**40])["token_ids"] == free["token_ids"]
        assert "nothing is forced" in server.log()

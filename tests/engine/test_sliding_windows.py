# SPDX-License-Identifier: Apache-2.0
"""Models in which some layers have a sliding window: only the other layers are compressed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.engine_process import EngineProcess
from headkv_vllm.head_scores.file import Provenance, ScoredModel, ScoreFile, write_score_file
from headkv_vllm.head_scores.identity import identify_checkpoint
from tests.engine.conftest import Engines
from tests.engine.helpers import inside, stepping
from tests.engine.helpers.inside import TokenIds
from tests.engine.helpers.reference import Compression, Reference, folded_scores
from tests.engine.helpers.sliding_models import KINDS, WINDOW, write_sliding_model
from tests.engine.test_reference import assert_same

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

BLOCK_SIZE = 32
LENGTHS = (20, 200, 513, 1000)
PROMPTS = [random.Random(length).choices(range(4, 500), k=length) for length in LENGTHS]
"""The last one goes on where the prefix cache helps."""
PROMPTS.append([*PROMPTS[3][:800], *PROMPTS[2][:100]])
NUM_STEPS = 24
BUDGETS = (72, 136)
CHUNK = 256
NUM_BLOCKS = 400


@dataclass(frozen=True)
class Model:
    """A checkpoint, and scores that differ from head to head."""

    folder: Path
    scores: Path

    def start(self, engines: Engines, **settings: Any) -> EngineProcess:
        """An engine with our backend; without settings, one with vLLM's own."""
        arguments: dict[str, Any] = {
            "model": str(self.folder),
            "skip_tokenizer_init": True,
            "block_size": BLOCK_SIZE,
            "max_model_len": 2048,
            "max_num_batched_tokens": CHUNK,
            "num_gpu_blocks_override": NUM_BLOCKS + 1,
        }
        if not settings:
            return engines.stock(**arguments)
        return engines.headkv({"scores": str(self.scores), **settings}, **arguments)


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_sliding_model(tmp_path_factory.mktemp("model"), request.param)
    identity = identify_checkpoint(folder)
    assert identity.num_layers == 2  # of each kind
    rng = random.Random(0)
    file = ScoreFile(
        schema_version=1,
        model=ScoredModel(name="random", identity=identity),
        method="random",
        provenance=Provenance(tool_version="1"),
        scores=[[rng.random() for _ in range(4)] for _ in range(identity.num_layers)],
    )
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    write_score_file(path, file)
    return Model(folder, path)


@pytest.fixture(scope="module")
def engine(model: Model, engines: Engines) -> Iterator[EngineProcess]:
    running = model.start(engines, budget=136)
    yield running
    engines.end(running)


@pytest.fixture(scope="module")
def reference(model: Model) -> Iterator[Reference]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # engines have bound the cores to threads of their own
    yield Reference(model.folder)
    torch.set_num_threads(num_threads)


def answers(engine: EngineProcess, prompts: list[TokenIds], **limits: Any) -> list[inside.Answer]:
    given = {"logprobs": 5, "ignore_eos": True, "detokenize": False, **limits}
    return list(engine.call(inside.answer, prompts, NUM_STEPS, **given))


def test_without_a_budget_the_answers_are_stock(
    model: Model, engine: EngineProcess, engines: Engines
) -> None:
    """In chunks, and with prefix hits: to the last bit."""
    stock = model.start(engines)
    for _ in range(2):
        assert answers(engine, PROMPTS, budget=0) == answers(stock, PROMPTS)
    assert answers(engine, PROMPTS, budget=0)[3].num_cached_tokens == 992
    assert engine.call(inside.reset_prefix_cache)
    engines.end(stock)


def test_compressed_prompts_are_answered_as_by_the_reference(
    model: Model, engine: EngineProcess, reference: Reference
) -> None:
    scores = folded_scores(model.scores, reference.num_kv_heads, "mean")
    prefills = [reference.read(prompt) for prompt in PROMPTS]
    changed = False
    for budget in BUDGETS:
        how = Compression(budget, BLOCK_SIZE, scores)
        given = answers(engine, PROMPTS, budget=budget)
        again = answers(engine, PROMPTS, budget=budget)
        for prefill, one, other in zip(prefills, given, again, strict=True):
            expected = reference.answer(prefill, how, NUM_STEPS)
            what = f"{prefill.num_tokens} tokens, budget {budget}"
            assert_same(one, expected, what)
            assert_same(other, expected, f"{what}, cached")
            whole = reference.answer(prefill, None, NUM_STEPS)
            changed |= float((expected[1] - whole[1]).abs().max()) > 0.01
        # Blocks of a compressed prompt are shared up to its window.
        assert again[3].num_cached_tokens == (1000 - 8) // BLOCK_SIZE * BLOCK_SIZE
    assert changed


def test_generated_tokens_are_compressed_as_by_the_reference(
    model: Model, engine: EngineProcess, reference: Reference
) -> None:
    scores = folded_scores(model.scores, reference.num_kv_heads, "mean")
    how = Compression(136, BLOCK_SIZE, scores, compress_every=64)
    own = [{"headkv_compress_every": 64}]
    given = engine.call(
        inside.answer, PROMPTS[1:2], 200, own=own, logprobs=5, ignore_eos=True, detokenize=False
    )
    assert_same(given[0], reference.answer(reference.read(PROMPTS[1]), how, 200), "again")


def test_blocks_of_full_layers_are_freed(engine: EngineProcess) -> None:
    """A sliding window needs few blocks anyway; those of the full layers are freed."""
    num_groups = engine.call(num_kv_cache_groups)
    request = engine.call(stepping.add, PROMPTS[3], NUM_STEPS, ignore_eos=True, detokenize=False)
    engine.call(stepping.step_until_computed, request, 1010)
    held = engine.call(stepping.live)[request].num_held
    in_windows = (num_groups - 1) * (-(-WINDOW // BLOCK_SIZE) + 1)
    # 4 compressed blocks, and those of the prompt's last tokens and of the answer.
    assert held <= 4 + 1 + in_windows < 1000 // BLOCK_SIZE
    engine.call(stepping.abort, request)
    engine.call(stepping.drain)


def num_kv_cache_groups(llm: Any) -> int:
    return len(inside.scheduler(llm).kv_cache_manager.coordinator.single_type_managers)


def test_preempted_requests_are_answered_as_alone(engine: EngineProcess) -> None:
    expected = [answers(engine, [prompt])[0].token_ids for prompt in PROMPTS]
    for forget in (False, True):
        requests = [
            engine.call(stepping.add, prompt, NUM_STEPS, ignore_eos=True, detokenize=False)
            for prompt in PROMPTS
        ]
        engine.call(stepping.step_until_computed, requests[-1], len(PROMPTS[-1]) + 9)
        engine.call(stepping.preempt_all, forget)
        assert engine.call(stepping.finish, requests) == expected


def test_a_small_pool_serves_all(engine: EngineProcess) -> None:
    """It has room for little more than the prefill of one prompt."""
    expected = answers(engine, PROMPTS[3:4])[0].token_ids
    num_groups = engine.call(num_kv_cache_groups)
    engine.call(inside.reset_prefix_cache)
    in_prefill = -(-(WINDOW + CHUNK) // BLOCK_SIZE) + 1
    engine.call(stepping.occupy, 40 + in_prefill * (num_groups - 1))
    requests = [
        engine.call(stepping.add, PROMPTS[3], NUM_STEPS, ignore_eos=True, detokenize=False)
        for _ in range(3)
    ]
    while engine.call(stepping.step):
        pass
    engine.call(stepping.vacate)
    assert engine.call(stepping.finish, requests) == [expected] * 3

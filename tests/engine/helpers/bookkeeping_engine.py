# SPDX-License-Identifier: Apache-2.0
"""vLLM's real scheduler and block pool with our manager, and a worker that keeps books.

The worker follows the scheduler's output as a real one does, but writes into each slot a note of
what a real one would compute there: a fingerprint of the tokens that the entry depends on. Before
it computes a token it reads back every entry that the token attends, so a block that was freed,
shared, moved or hashed when it must not be shows as a wrong note.
"""

import json
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import (
    get_request_block_hasher,
    init_none_hash,
)
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from headkv_vllm.cache.block_row import BlockRow
from headkv_vllm.engine.kv_cache import HeadKVManager, HeadKVSpec
from headkv_vllm.engine.scheduler import HeadKVAsyncScheduler, HeadKVScheduler
from headkv_vllm.engine.settings import read_settings

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 2048,
}
GROUP_SIZE = 2
COMMON = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "attention_backend": "HEADKV",
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 16,
    "max_model_len": 2048,
}


def write_model(folder: Path, **changes: Any) -> Path:
    """A model folder with a configuration and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def engine_config(model: Path, settings: dict[str, Any], **arguments: Any) -> VllmConfig:
    """What vLLM makes of its flags for `model`, which needs no weights."""
    headkv = {"headkv": {"scores": "uniform", **settings}}
    every = {**COMMON, "model": str(model), "additional_config": headkv, **arguments}
    return EngineArgs(**every).create_engine_config()


def fingerprints(tokens: list[int]) -> list[int]:
    """For each position, a number that stands for all tokens up to it."""
    return list(accumulate(tokens, lambda before, token: hash((before, token)), initial=0))[1:]


@dataclass
class Worker:
    """Each request's row and computed tokens, and a note in each slot of the memory."""

    block_size: int
    window: int
    width: int
    num_query_blocks: int
    compress_prefill: bool

    def __post_init__(self) -> None:
        self.notes: dict[tuple[int, int], object] = {}
        self.rows: dict[str, list[int]] = {}

    def execute(self, output: SchedulerOutput, exact: dict[str, list[int]]) -> None:
        """One step. exact: the fingerprints of each request's tokens."""
        for request_id in output.finished_req_ids:
            self.rows.pop(request_id, None)
        starts = self._take_rows(output)
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            start = starts[request_id]
            assert len(self.rows[request_id]) <= self.width
            row = BlockRow.from_entries(self.rows[request_id])
            self._compute(row, exact[request_id], start, start + num_tokens)

    def _take_rows(self, output: SchedulerOutput) -> dict[str, int]:
        starts = {}
        for new in output.scheduled_new_reqs:
            self.rows[new.req_id] = list(new.block_ids[0])
            starts[new.req_id] = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            starts[request_id] = cached.num_computed_tokens[index]
            blocks = cached.new_block_ids[index]
            if request_id in cached.resumed_req_ids:
                self.rows[request_id] = list(blocks[0])
            elif blocks is not None:
                self.rows[request_id] += blocks[0]
        return starts

    def _compute(self, row: BlockRow, exact: list[int], start: int, end: int) -> None:
        points = self._points(row, end)
        assert not any(start < point < end for point in points), "a step crosses a point"
        if not points or start < points[0]:
            self._expect(row, exact, 0, start, start)
            if points and self._is_by_prompt(row, end):
                assert start <= end - self.window, "the window's queries are not all in this step"
                self._note_compressed(row, exact, end)
        else:
            *earlier, point = [point for point in points if point <= start]
            if start == point and not self._is_by_prompt(row, point):
                self._compress_again(row, exact, earlier[-1:], point, points[0])
            self._expect_compressed(row, exact, point)
            first = self._num_full(point) * self.block_size
            self._expect(row, exact, first, start, points[0])
        for position in range(start, end):
            is_after = bool(points) and position >= points[0]
            self._note(row, position, ("after", exact[position]) if is_after else exact[position])
        self._keep_queries(row, exact, start, end)

    def _points(self, row: BlockRow, end: int) -> list[int]:
        """The compression points up to `end`, and the one after it."""
        num_compressed = len(self._compressed(row))
        if not num_compressed:
            return []
        if not row.interval:
            return [row.num_prompt_tokens]
        twice = 2 * num_compressed * self.block_size + self.window
        points = [twice if self.compress_prefill else max(row.num_prompt_tokens, twice)]
        while points[-1] < end:
            points.append(points[-1] + row.interval * self.block_size)
        return points

    def _is_by_prompt(self, row: BlockRow, point: int) -> bool:
        """Whether the step that completes the prompt compresses the request at this point."""
        return point == row.num_prompt_tokens == self._points(row, 0)[0]

    def _compressed(self, row: BlockRow) -> tuple[int, ...]:
        num_query_blocks = self.num_query_blocks if row.interval else 0
        return row.private_blocks[: len(row.private_blocks) - num_query_blocks]

    def _num_full(self, point: int) -> int:
        return (point - self.window) // self.block_size

    def _compress_again(
        self, row: BlockRow, exact: list[int], earlier: list[int], point: int, first_point: int
    ) -> None:
        """All entries that may be kept are there, and the queries of the whole window."""
        first = 0
        if earlier:
            self._expect_compressed(row, exact, earlier[0])
            first = self._num_full(earlier[0]) * self.block_size
        self._expect(row, exact, first, point, first_point)
        for index in range(self.window):
            note = self.notes[self._query_place(row, index)]
            assert note == ("query", exact[point - self.window + index])
        self._note_compressed(row, exact, point)

    def _note_compressed(self, row: BlockRow, exact: list[int], point: int) -> None:
        for block in self._compressed(row):
            self.notes[block, 0] = ("compressed", exact[point - 1])

    def _expect_compressed(self, row: BlockRow, exact: list[int], point: int) -> None:
        for block in self._compressed(row):
            assert self.notes[block, 0] == ("compressed", exact[point - 1])

    def _expect(
        self, row: BlockRow, exact: list[int], start: int, end: int, first_point: int
    ) -> None:
        for position in range(start, end):
            is_after = position >= first_point
            expected = ("after", exact[position]) if is_after else exact[position]
            assert self._read(row, position) == expected

    def _keep_queries(self, row: BlockRow, exact: list[int], start: int, end: int) -> None:
        if not row.interval:
            return
        for position in range(start, end):
            point = next(p for p in self._points(row, position + 1) if p > position)
            index = position - (point - self.window)
            if not self._is_by_prompt(row, point) and index >= 0:
                self.notes[self._query_place(row, index)] = ("query", exact[position])

    def _query_place(self, row: BlockRow, index: int) -> tuple[int, int]:
        per_block = 2 * self.block_size // GROUP_SIZE
        block = row.private_blocks[len(self._compressed(row)) + index // per_block]
        return block, index % per_block

    def _slot(self, row: BlockRow, position: int) -> tuple[int, int]:
        return row.blocks[position // self.block_size], position % self.block_size

    def _read(self, row: BlockRow, position: int) -> object:
        return self.notes[self._slot(row, position)]

    def _note(self, row: BlockRow, position: int, note: object) -> None:
        slot = self._slot(row, position)
        assert slot[0] != 0, "the null block is written to"
        self.notes[slot] = note


class BookkeepingEngine:
    """Schedules real requests step by step and checks the books at every one.

    in_flight: steps that are scheduled before the first of them is finished; above 1 the
    scheduler is the asynchronous one.
    """

    def __init__(self, config: VllmConfig, num_blocks: int, in_flight: int = 1) -> None:
        self.settings = read_settings(config)
        self.block_size = config.cache_config.block_size
        config.cache_config.num_gpu_blocks = num_blocks
        hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(self.block_size, hash_function)
        spec = HeadKVSpec(
            block_size=self.block_size,
            num_kv_heads=2,
            head_size=16,
            dtype=config.model_config.dtype,
        )
        names = ["model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"]
        kv_cache_config = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(names, spec)])
        scheduler_class = HeadKVScheduler if in_flight == 1 else HeadKVAsyncScheduler
        self.scheduler = scheduler_class(
            config, kv_cache_config, StructuredOutputManager(config), self.block_size
        )
        width = spec.max_num_blocks_per_req(config, config.model_config.max_model_len)
        self.worker = Worker(
            self.block_size,
            self.settings.window,
            width,
            self.manager.num_query_blocks,
            self.settings.compress_prefill,
        )
        self._in_flight, self._depth = deque[SchedulerOutput](), in_flight
        self._sampled: dict[int, set[str]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._exact: dict[str, list[int]] = {}
        self._watch_allocation()

    @property
    def manager(self) -> HeadKVManager:
        (manager,) = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        return manager

    @property
    def num_free(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        resumable: bool = False,
        **arguments: object,
    ) -> Request:
        """Queue a request. What it will generate is a matter of its name alone.

        arguments: the request's own, which nobody has checked.
        """
        parameters = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        parameters.extra_args = arguments
        request = Request(
            request_id, prompt, parameters, None, block_hasher=self._hasher, resumable=resumable
        )
        seed = sum(request_id.encode())
        generated = [(seed + index * 7919) % 128 for index in range(max_tokens + 1)]
        self._tokens[request_id] = prompt + generated
        self._exact[request_id] = fingerprints(self._tokens[request_id])
        self.scheduler.add_request(request)
        return request

    def tokens(self, request_id: str) -> list[int]:
        """The prompt, and all that is or will be generated."""
        return self._tokens[request_id]

    def abort(self, request_id: str) -> None:
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def step(self) -> SchedulerOutput:
        """Schedule and execute a step, finish the oldest in flight, and check everything."""
        output = self.scheduler.schedule()
        self.worker.execute(output, self._exact)
        self._in_flight.append(output)
        self._sampled[id(output)] = {
            request_id
            for request_id in output.num_scheduled_tokens
            if not self.scheduler.requests[request_id].is_prefill_chunk
        }
        self.check()
        if len(self._in_flight) == self._depth:
            self.finish_step()
        return output

    def finish_step(self) -> None:
        """Hand the oldest step's results to the scheduler."""
        output = self._in_flight.popleft()
        sampled = self._sampled.pop(id(output))
        request_ids = list(output.num_scheduled_tokens)
        tokens = [[self._next(request)] if request in sampled else [] for request in request_ids]
        order = {request_id: index for index, request_id in enumerate(request_ids)}
        self.scheduler.update_from_output(output, ModelRunnerOutput(request_ids, order, tokens))
        self.check()

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left to do; raises when nothing moves any more."""
        idle = 0
        while self.scheduler.has_unfinished_requests():
            output = self.step()
            idle = 0 if output.total_num_scheduled_tokens else idle + 1
            assert idle <= 2 * self._depth, "the scheduler is stuck"
            max_steps -= 1
            assert max_steps > 0
        while self._in_flight:
            self.finish_step()

    def check(self) -> None:
        """The scheduler's own checks."""
        self.scheduler.check_integrity()

    def _next(self, request_id: str) -> int:
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return 0
        return self._tokens[request_id][request.num_tokens]

    def _watch_allocation(self) -> None:
        """Hold the blocks that leave the free list against what the manager asked for."""
        manager = self.scheduler.kv_cache_manager
        ask, allocate = manager.coordinator.get_num_blocks_to_allocate, manager.allocate_slots
        asked: list[tuple[int, int]] = []

        def watched_ask(*args: Any, **kwargs: Any) -> int:
            asked.append((ask(*args, **kwargs), self.num_free))
            return asked[-1][0]

        def watched_allocate(*args: Any, **kwargs: Any) -> Any:
            blocks = allocate(*args, **kwargs)
            if blocks is not None:
                num_asked, free_before = asked[-1]
                assert free_before - self.num_free == num_asked
            return blocks

        manager.coordinator.get_num_blocks_to_allocate = watched_ask
        manager.allocate_slots = watched_allocate

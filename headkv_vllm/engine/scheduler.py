# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedulers with budgets: they give the KV-cache manager each request's budget."""

from typing import TYPE_CHECKING, Any

from typing_extensions import override
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request

from headkv_vllm.budgets.request import RequestBudget, request_budget
from headkv_vllm.config import Settings
from headkv_vllm.engine.admission import Admission
from headkv_vllm.engine.kv_cache_groups import Groups
from headkv_vllm.engine.logger import logger
from headkv_vllm.engine.metrics.definitions import message_of
from headkv_vllm.engine.metrics.scheduler_counts import SchedulerCounts
from headkv_vllm.engine.metrics.worker_counts import WorkerCounts, table_path
from headkv_vllm.engine.settings import query_blocks, read_scores, read_settings
from headkv_vllm.errors import RequestError
from headkv_vllm.request_overrides import request_settings

if TYPE_CHECKING:
    _Stock = Scheduler  # mypy checks the overrides
else:
    _Stock = object


class _HeadKVMixin(_Stock):
    """The same additions to either of vLLM's schedulers."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self._settings = read_settings(vllm_config)
        self._groups = Groups(self.kv_cache_manager.coordinator)
        self._manager = manager = self._groups.headkv
        manager.num_query_blocks = query_blocks(vllm_config, self._settings, manager.block_size)
        limits = (self.max_num_scheduled_tokens, self.max_model_len)
        self._admission = Admission(manager, *limits)
        manager.admission = self._num_blocks_to_admit
        table = WorkerCounts.open(table_path(vllm_config))
        self._scheduler_counts = SchedulerCounts(manager, read_scores(vllm_config).size, table)

    @override
    def add_request(self, request: Request) -> None:
        """Announce the request's budget, then let vLLM queue it."""
        if request.request_id not in self._manager.budgets:
            budget = self._budget(request)
            self._manager.announce(request.request_id, budget)
            if budget.compressed:
                _end_hashes(request, budget.num_full_blocks)
        super().add_request(request)

    def _num_blocks_to_admit(self, request_id: str, num_missing: int) -> int:
        running, waiting = self.running, self.requests[request_id]
        return self._admission.num_blocks(running, waiting, num_missing)

    def _budget(self, request: Request) -> RequestBudget:
        if request.resumable:  # its prompt can grow, so its length is not known
            return self._budget_with(self._settings, request).skipped("resumable")
        budget = self._budget_with(self._request_settings(request), request)
        if budget.compressed or not self._settings.compress_prefill:
            return budget
        num_tokens = self._max_tokens(request)
        if self._groups.can_hold(budget, num_tokens):
            return budget
        # With `compress_prefill` a prompt may be longer than the pool. What a request asks for must
        # not make it wait for ever.
        logger.warning(
            "HeadKV: request %s uses the server's settings: the pool has no room for its %d tokens",
            request.request_id,
            num_tokens,
        )
        return self._budget_with(self._settings, request)

    def _budget_with(self, settings: Settings, request: Request) -> RequestBudget:
        budget = request_budget(settings, request.num_prompt_tokens, self._manager.block_size)
        num_tokens = self._max_tokens(request)
        # The last token of an answer is never computed.
        if budget.compressed and num_tokens - 1 <= budget.first_point:
            return budget.skipped("short_answer")
        if budget.compressed and not self._groups.can_hold(budget, num_tokens):
            return budget.skipped("no_room")
        return budget

    def _max_tokens(self, request: Request) -> int:
        """The tokens that a request can have, prompt and answer."""
        max_model_len: int = self.max_model_len
        return min(request.num_prompt_tokens + request.max_tokens, max_model_len)

    def _request_settings(self, request: Request) -> Settings:
        """The server's settings with the request's own values.

        `engine.request_checks` has checked the request. If a request comes another way, a wrong
        value must not end the engine for all requests.
        """
        parameters = request.sampling_params
        given = parameters.extra_args if parameters else None
        try:
            asked = request_settings(self._settings, given)
            can_again = self._manager.num_query_blocks > 0
            return asked if can_again else asked.model_copy(update={"compress_every": 0})
        except RequestError as error:
            logger.warning(
                "HeadKV: request %s uses the server's settings: %s", request.request_id, error
            )
            return self._settings

    @override
    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """End the chunks of a request at its compression points.

        The step that completes a prompt to compress needs the queries of the whole observation
        window. So a chunk that would end inside the window ends before it, and no worker has to
        keep queries between steps. A chunk also ends at each compression point: a resumed request
        has more tokens, but they attend the entries that the compression selects. vLLM has this
        hook for drafters that look beyond a chunk's end. Its own rule stays, and ours is added.
        """
        num_new_tokens = super()._reserve_prefill_lookahead(
            request, num_computed_tokens, num_new_tokens
        )
        budget = self._manager.budgets[request.request_id]
        point = budget.next_point(num_computed_tokens, self._manager.block_size)
        if point is None:
            return num_new_tokens
        window_start, end = point - self._settings.window, num_computed_tokens + num_new_tokens
        if budget.is_by_prompt(point) and window_start < end < point:
            return max(0, window_start - num_computed_tokens)
        if budget.interval and num_computed_tokens >= budget.first_point:
            point = self._end_of_chunk(request, num_computed_tokens, point)
        return max(0, min(num_new_tokens, point - num_computed_tokens))

    def _end_of_chunk(self, request: Request, num_computed_tokens: int, next_point: int) -> int:
        """Where a chunk after a compression point must end, in tokens.

        The blocks that a compression replaces are free when its step is processed. A resumed
        request could be at its next point by then, and hold twice as many blocks as between two
        points. So it waits, with no more than a block of new tokens.
        """
        budget, block_size = self._manager.budgets[request.request_id], self._manager.block_size
        num_processed = num_computed_tokens - request.num_in_flight_tokens
        # The step that completes a prompt compresses it. At other points it is the step after.
        is_done = budget.is_by_prompt(num_processed)
        pending = budget.next_point(num_processed - (0 if is_done else 1), block_size)
        assert pending is not None, "a request that is compressed again has a next point"
        return min(next_point, pending + block_size)

    @override
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Plan a step, and count what it compresses."""
        output = super().schedule(*args, **kwargs)
        self._scheduler_counts.count_step(output, self.requests)
        if self._settings.check_integrity:
            self.check_integrity()
        return output

    @override
    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """vLLM's statistics with our numbers; None if statistics are off."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            message_of(stats).update(self._scheduler_counts.take_message())
        return stats

    @override
    def _free_blocks(self, request: Request) -> None:
        # vLLM calls this when a request ends in any way, but not for a preemption.
        super()._free_blocks(request)
        self._admission.record(request)
        self._manager.withdraw(request.request_id)
        self._scheduler_counts.forget(request.request_id)

    def check_integrity(self) -> None:
        """Assert that the block accounting, the counts and the announced budgets are right.

        Each step calls this if the setting `check_integrity` is on. A failed check ends the engine,
        because a wrong answer is worse than no answer.
        """
        self._groups.check_integrity()
        self._scheduler_counts.check_integrity()
        assert self._manager.budgets.keys() == self.requests.keys()


class HeadKVScheduler(_HeadKVMixin, Scheduler):
    """vLLM's scheduler with per-request budgets."""


class HeadKVAsyncScheduler(_HeadKVMixin, AsyncScheduler):
    """vLLM's asynchronous scheduler with per-request budgets."""


def _end_hashes(request: Request, num_blocks: int) -> None:
    """Limit the request's prefix caching to its first `num_blocks` blocks.

    With a longer hit the window's queries would not be computed, or tokens that attended a full
    cache would follow a compressed prompt (a longer prompt may have cached the tokens that a
    preempted request has generated). vLLM looks up and caches only the hashes in the request's
    list. So the list is cut, and without its hasher (a private name of vLLM's) it does not grow.
    """
    del request.block_hashes[num_blocks:]
    request._block_hasher = None

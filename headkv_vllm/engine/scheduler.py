# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedulers, which tell the KV-cache manager each request's budget."""

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
from headkv_vllm.engine.kv_cache import HeadKVManager
from headkv_vllm.engine.logger import logger
from headkv_vllm.engine.metrics.message import message_of
from headkv_vllm.engine.metrics.scheduler_counts import SchedulerCounts
from headkv_vllm.engine.metrics.worker_counts import WorkerCounts, table_path
from headkv_vllm.engine.settings import read_scores, read_settings
from headkv_vllm.errors import RequestError
from headkv_vllm.request_overrides import request_settings

if TYPE_CHECKING:
    _Stock = Scheduler  # so that what we override is checked
else:
    _Stock = object


class _HeadKVMixin(_Stock):
    """The same additions to either of vLLM's schedulers."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self._settings = read_settings(vllm_config)
        (manager,) = self.kv_cache_manager.coordinator.single_type_managers
        assert isinstance(manager, HeadKVManager)
        self._manager = manager
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
        block_size, settings = self._manager.block_size, self._request_settings(request)
        budget = request_budget(settings, request.num_prompt_tokens, block_size)
        if request.resumable:  # its prompt grows, so it has no length to compress
            return budget.skipped("resumable")
        most: int = self.max_model_len
        num_tokens = min(request.num_prompt_tokens + request.max_tokens, most)
        if budget.compressed and not self._manager.can_hold(
            num_tokens, budget.num_compressed_blocks
        ):
            return budget.skipped("no_room")
        return budget

    def _request_settings(self, request: Request) -> Settings:
        """The server's settings with what the request asks for in their place.

        It has been checked where it came in, see `engine.request_checks`. A request that went
        another way must not end the engine for all.
        """
        parameters = request.sampling_params
        try:
            return request_settings(self._settings, parameters.extra_args if parameters else None)
        except RequestError as error:
            logger.warning(
                "HeadKV: request %s gets the server's settings: %s", request.request_id, error
            )
            return self._settings

    @override
    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """End chunks of a request that is to be compressed where its prompt can be compressed.

        The step that completes the prompt needs the queries of all its last `window` tokens. A
        chunk that would end among them ends before the first of them instead, so that no worker
        has to keep queries from one step to the next. A chunk also ends with its prompt: a resumed
        request has tokens beyond it, but what they attend is decided by the step that completes
        the prompt. vLLM has this hook for drafters that look ahead of a chunk's end; we keep its
        own rule and add ours.
        """
        num_new_tokens = super()._reserve_prefill_lookahead(
            request, num_computed_tokens, num_new_tokens
        )
        budget = self._manager.budgets[request.request_id]
        prompt_end = budget.num_prompt_tokens
        if not budget.compressed or num_computed_tokens >= prompt_end:
            return num_new_tokens
        window_start = prompt_end - self._settings.window
        if window_start < num_computed_tokens + num_new_tokens < prompt_end:
            return max(0, window_start - num_computed_tokens)
        return min(num_new_tokens, prompt_end - num_computed_tokens)

    @override
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Plan a step, and count the prompts that it completes."""
        output = super().schedule(*args, **kwargs)
        self._scheduler_counts.count_prompts(output, self.requests)
        if self._settings.check_integrity:
            self.check_integrity()
        return output

    @override
    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """Let ours ride on vLLM's own; None when nobody wants any."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            message_of(stats).update(self._scheduler_counts.take_message())
        return stats

    @override
    def _free_blocks(self, request: Request) -> None:
        # vLLM's last word on a request, however it ends; a preemption does not come here.
        super()._free_blocks(request)
        self._admission.record(request)
        self._manager.withdraw(request.request_id)
        self._scheduler_counts.forget(request.request_id)

    def check_integrity(self) -> None:
        """The pool's blocks and the requests' rows are whole, and no budget outlives its request.

        In each step under the setting `check_integrity`. A wrong answer is worse than none, so
        what is found ends the engine, as any error in it does.
        """
        self._manager.check_integrity()
        self._scheduler_counts.check_integrity()
        assert self._manager.budgets.keys() == self.requests.keys()


class HeadKVScheduler(_HeadKVMixin, Scheduler):
    """vLLM's scheduler with per-request budgets."""


class HeadKVAsyncScheduler(_HeadKVMixin, AsyncScheduler):
    """vLLM's asynchronous scheduler with per-request budgets."""


def _end_hashes(request: Request, num_blocks: int) -> None:
    """Let the request hit and offer `num_blocks` blocks of the prefix cache, and no more.

    A hit beyond them would leave the window's queries uncomputed, or put tokens that were
    computed from a full cache behind a compressed prompt (a longer prompt may have cached what
    a preempted request has generated). vLLM looks up and caches no further than a request's list
    of hashes goes, so the list ends there and, without its hasher (a private name of vLLM's),
    grows no more.
    """
    del request.block_hashes[num_blocks:]
    request._block_hasher = None

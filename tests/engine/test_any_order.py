# SPDX-License-Identifier: Apache-2.0
"""vLLM's scheduler and pool with our manager, under any order of events that hypothesis finds.

Where `random_course` goes far, this finds the shortest way to a fault.
"""

import tempfile
from functools import cache
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from headkv_vllm.budgets.policies import POLICIES
from tests.engine.helpers.bookkeeping_engine import BookkeepingEngine, engine_config, write_model
from tests.engine.helpers.random_course import COURSES, NUM_BLOCKS, PROMPT

OWN = st.fixed_dictionaries(
    {},
    optional={
        "headkv_budget": st.sampled_from([0, 40, 64, 128, 2000, -1, "64"]),
        "headkv_policy": st.sampled_from([*POLICIES, "none such"]),
    },
)


@cache
def folder():
    return tempfile.TemporaryDirectory()


@cache
def config(course):
    model = Path(folder().name)
    if not (model / "config.json").exists():
        write_model(model)
    own, flags = COURSES[course]
    return engine_config(model, own, **{"max_num_seqs": 8, **flags})


class AnyOrder(RuleBasedStateMachine):
    """The engine checks its books at each step; at the end nothing may be left."""

    engine: BookkeepingEngine

    @initialize(course=st.integers(0, len(COURSES) - 1), in_flight=st.sampled_from([1, 2]))
    def start(self, course, in_flight):
        self.in_flight, self.num_added = in_flight, 0
        self.engine = BookkeepingEngine(config(course), NUM_BLOCKS, in_flight)

    @property
    def requests(self):
        return list(self.engine.scheduler.requests)

    @precondition(lambda self: len(self.requests) < 10)
    @rule(
        shared=st.integers(0, 200),
        own=st.lists(st.integers(0, 127), min_size=1, max_size=20),
        max_tokens=st.integers(1, 120),
        arguments=OWN,
    )
    def add(self, shared, own, max_tokens, arguments):
        name = f"request {self.num_added}"
        self.num_added += 1
        self.engine.add(name, [*PROMPT[:shared], *own], max_tokens, **arguments)

    @precondition(lambda self: self.num_added)
    @rule(data=st.data(), max_tokens=st.integers(1, 60))
    def ask_on(self, data, max_tokens):
        """A second turn: an earlier prompt and what was, or will be, answered."""
        earlier = self.engine.tokens(f"request {data.draw(st.integers(0, self.num_added - 1))}")
        length = data.draw(st.integers(1, min(300, len(earlier))))
        self.engine.add(f"request {self.num_added}", [*earlier[:length], 1, 2], max_tokens)
        self.num_added += 1

    @rule(num_steps=st.integers(1, 20))
    def step(self, num_steps):
        for _ in range(num_steps):
            self.engine.step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data):
        self.engine.abort(data.draw(st.sampled_from(self.requests)))
        self.engine.check()

    @rule(running=st.booleans())
    def reset(self, running):
        self.engine.scheduler.reset_prefix_cache(reset_running_requests=running)
        self.engine.check()

    @precondition(lambda self: self.in_flight == 1 and self.engine.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data):
        """As vLLM does when the pool runs out, but any request at any time."""
        scheduler = self.engine.scheduler
        request = data.draw(st.sampled_from(scheduler.running))
        scheduler.running.remove(request)
        scheduler._preempt_request(request, 0.0)
        self.engine.check()

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.run()
            assert self.engine.num_free == NUM_BLOCKS - 1
            assert not self.engine.manager.budgets and not self.engine.manager.req_to_blocks


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase

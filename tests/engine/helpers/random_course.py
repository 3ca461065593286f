# SPDX-License-Identifier: Apache-2.0
"""Arrivals, aborts, resets and preemptions at random, in a pool too small for all.

`python -m tests.engine.helpers.random_course --steps 100000` runs that many steps and reports them.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from headkv_vllm.budgets.policies import POLICIES
from tests.engine.helpers.bookkeeping_engine import BookkeepingEngine, engine_config, write_model

NUM_BLOCKS = 36
PROMPT = [(7 * index + index // 5) % 128 for index in range(400)]

COURSES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"budget": 64, "window": 8}, {"max_num_batched_tokens": 48}),
    ({"budget": 64, "window": 8, "policy": "headkv_ada"}, {"max_num_batched_tokens": 80}),
    ({"budget": 9, "window": 8}, {"max_num_batched_tokens": 200, "watermark": 0.05}),
    ({"keep_ratio": 0.3, "window": 3}, {"enable_prefix_caching": False}),
    ({"keep_ratio": 0.6, "window": 24}, {"long_prefill_token_threshold": 40}),
    ({"budget": 48, "window": 8}, {"scheduler_reserve_full_isl": False}),
    ({"budget": 48, "window": 8, "policy": "adakv"}, {"max_num_batched_tokens": 96}),
    ({"budget": 40, "window": 8, "compress_every": 16}, {"scheduler_reserve_full_isl": False}),
    ({"budget": 48, "window": 20, "compress_every": 40}, {"scheduler_reserve_full_isl": False}),
    (
        {"budget": 48, "window": 8, "compress_every": 32, "compress_prefill": True},
        {"scheduler_reserve_full_isl": False},
    ),
]
"""Settings, and vLLM's own."""


@dataclass
class Course:
    """One engine and what has happened to it. `go` is one more step."""

    engine: BookkeepingEngine
    chance: random.Random
    happened: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)

    def go(self) -> None:
        """Something happens, or nothing, and the engine does a step; it checks itself."""
        self._arrive()
        if self.chance.random() < 0.03:
            self.engine.abort(self.chance.choice([*self.engine.scheduler.requests, "none"]))
            self.engine.check()
            self.happened["aborts"] += 1
        if self.chance.random() < 0.01:
            self.engine.scheduler.reset_prefix_cache(reset_running_requests=True)
            self.engine.check()
            self.happened["resets"] += 1
        requests = list(self.engine.scheduler.requests.values())
        before = sum(request.num_preemptions for request in requests)
        self.engine.step()
        preemptions = sum(request.num_preemptions for request in requests) - before
        self.happened.update(steps=1, preemptions=preemptions)

    def end(self) -> None:
        """Let all requests end, and see that nothing is left of them."""
        self.engine.run()
        assert self.engine.num_free == NUM_BLOCKS - 1
        assert not self.engine.manager.budgets and not self.engine.manager.req_to_blocks

    def _arrive(self) -> None:
        if len(self.engine.scheduler.requests) < 10 and self.chance.random() < 0.4:
            prompt = random_prompt(self.engine, self.chance, self.names)
            self.names.append(f"request {self.happened['steps']}")
            own = random_arguments(self.chance)
            self.engine.add(self.names[-1], prompt, self.chance.randint(1, 200), **own)
            self.happened["requests"] += 1


def random_prompt(engine: BookkeepingEngine, chance: random.Random, names: list[str]) -> list[int]:
    """A prompt of its own, one that begins like another, or one that repeats an answer."""
    length = chance.randint(1, 200)
    kind = chance.random()
    if kind < 0.3 or not names:
        return [chance.randrange(128) for _ in range(length)]
    if kind < 0.7:
        return PROMPT[: chance.randint(1, length)] + [chance.randrange(128) for _ in range(20)]
    earlier = engine.tokens(chance.choice(names))[:length]
    return [*earlier, 1, 2, 3]


def random_arguments(chance: random.Random) -> dict[str, object]:
    """None of its own, a budget, a ratio, or a budget that is refused; and perhaps a policy."""
    budget: dict[str, object] = chance.choice(
        [
            {},
            {"headkv_budget": chance.choice([0, 40, 64, 128, 2000])},
            {"headkv_keep_ratio": chance.random() or 1},
            {"headkv_budget": chance.choice([-1, 1, "64", None])},
        ]
    )
    policy: dict[str, object] = {"headkv_policy": chance.choice(list(POLICIES))}
    every: dict[str, object] = {"headkv_compress_every": chance.choice([0, 3, 24, 32, 100])}
    for own, part in ((policy, 0.5), (every, 0.3)):
        if chance.random() < part:
            budget |= own
    return budget


def run_courses(
    model: Path, num_steps: int, seed: int, on_step: Callable[[], None] = lambda: None
) -> Counter[str]:
    """`num_steps` steps, shared out among all courses, each with one and two steps in flight.

    Returns how often what happened. Raises AssertionError where an engine's books are wrong.
    """
    happened: Counter[str] = Counter()
    every = [(*course, in_flight) for course in COURSES for in_flight in (1, 2)]
    for index, (settings, flags, in_flight) in enumerate(every):
        config = engine_config(model, settings, **{"max_num_seqs": 8, **flags})
        engine = BookkeepingEngine(config, NUM_BLOCKS, in_flight)
        course = Course(engine, random.Random(f"{seed} {index}"))
        for _ in range(-(-num_steps // len(every))):
            course.go()
            on_step()
        course.end()
        happened += course.happened
    return happened


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps, of all engines together.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Another seed, another course.")] = 0,
) -> None:
    """Drive vLLM's real scheduler and block pool at random, and check the books at every step."""
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        task = progress.add_task("steps", total=steps)
        happened = run_courses(
            write_model(Path(folder)), steps, seed, lambda: progress.advance(task)
        )
    print(", ".join(f"{count:,} {what}" for what, count in sorted(happened.items())))
    print("every step's books were in order")


if __name__ == "__main__":
    typer.run(main)

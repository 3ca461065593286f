# SPDX-License-Identifier: Apache-2.0
"""Where a decode step's time goes: compressed requests beside stock vLLM's short ones."""

from typing import Annotated

import typer
from rich.progress import track

from benchmarks.harness import parts_of_step, stepping
from benchmarks.harness.report import RESULTS, Out, Quick, Report, command_line
from benchmarks.harness.sides import BLOCK_SIZE, SideName, sides

NAMES: tuple[SideName, ...] = ("headkv", "twin")
STEPS_OF_A_TURN = 20


def profile(
    num_requests: int, num_prompt_tokens: int, budget: int, num_rounds: int
) -> dict[SideName, dict[str, float]]:
    """Milliseconds per step and part, by side."""
    generated, asked = (num_rounds + 3) * STEPS_OF_A_TURN, {"headkv_budget": budget}
    most_tokens = num_prompt_tokens + generated
    num_blocks = num_requests * (most_tokens // BLOCK_SIZE + 2) + 64
    limits = (most_tokens + 64, num_requests)
    found: dict[SideName, dict[str, float]] = {}
    with sides(NAMES, "8-layer", *limits, num_gpu_blocks_override=num_blocks) as engines:
        for name, side in engines.items():
            length = budget if name == "twin" else num_prompt_tokens
            side(stepping.add_requests, num_requests, length, generated, 0, asked)
            side(stepping.prefill)
            side(parts_of_step.watch)
        steps: dict[SideName, list[float]] = {name: [] for name in NAMES}
        for index in track(range(num_rounds + 1), "rounds"):
            for name, side in engines.items():
                times = side(stepping.decode, STEPS_OF_A_TURN)
                steps[name] += times if index else []
                if index == 0:  # a warm-up
                    side(parts_of_step.restart)
        for name, side in engines.items():
            parts = {"whole step": sum(steps[name]), **side(parts_of_step.seconds)}
            found[name] = {part: 1e3 * time / len(steps[name]) for part, time in parts.items()}
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine.")] = 15,
    quick: Quick = False,
    out: Out = RESULTS,
) -> None:
    """Take a decode step of 8 requests apart, of 1,024 tokens and a budget of 512."""
    found = profile(*((2, 256, 128, 1) if quick else (8, 1024, 512, rounds)))
    rows = [
        {"part": part, **{f"{name}, ms": found[name].get(part) for name in NAMES}}
        for part in ("whole step", *parts_of_step.PARTS)
    ]
    notes = ["Means. Taking the times costs some microseconds for each layer and part."]
    question = "Where does a decode step's time go?"
    Report("step_profile", question, command_line("step_profile"), rows, [], notes).write(out)


if __name__ == "__main__":
    typer.run(main)

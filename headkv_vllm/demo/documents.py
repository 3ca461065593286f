# SPDX-License-Identifier: Apache-2.0
"""The demonstration's questions: about a page that no model knows, or the needle model's texts."""

from pathlib import Path
from typing import Final

from headkv_vllm.demo.questions import Question
from headkv_vllm.demo.server import BLOCK_SIZE
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import NeedleTaskName, generate_samples
from headkv_vllm.resources import configs_dir

DOCUMENT: Final = Path(__file__).with_name("document.txt")
QUESTIONS: Final = {
    "How many rooms does the Lantern House have?": "17",
    "How many children does the school have?": "23",
    "In which year was the church bell found?": "1956",
    "How deep is the well?": "46",
}
"""Each question with the text that its answer must contain. Only the page has it."""
ASKED: Final = "Use the text above to answer this question: "
NEEDLES: Final[tuple[tuple[NeedleTaskName, int], ...]] = (
    ("multi-key", 1024),
    ("multi-query", 1024),
    ("two-hop", 1024),
    ("multi-key", 2048),
)
"""Tasks of the needle model, with the tokens of each prompt."""
SEED: Final = 11


def page_questions() -> tuple[Question, ...]:
    """Questions on the page, in chat format. All of them begin with the same text."""
    page = DOCUMENT.read_text()
    return tuple(
        Question(text, expected, f"{page}\n{ASKED}{text}", max_tokens=32, chat=True)
        for text, expected in QUESTIONS.items()
    )


def page_server(model: str) -> list[str]:
    """The arguments of `headkv serve` for a language model."""
    arguments = [model, "--dtype", "float32", "--max-model-len", "4096"]
    arguments += ["--block-size", str(BLOCK_SIZE), "--enforce-eager"]
    return [*arguments, "--enable-prompt-tokens-details"]


def needle_questions() -> tuple[Question, ...]:
    """Questions for the bundled needle model, in its own language."""
    samples = [next(generate_samples(task, tokens, 1, SEED)) for task, tokens in NEEDLES]
    return tuple(
        Question(
            f"{sample.task}, {sample.num_tokens:,} tokens: ? {sample.prompt.rsplit('? ', 1)[1]}",
            sample.answer.strip(),
            sample.prompt,
            max_tokens=48,
            chat=False,
        )
        for sample in samples
    )


def needle_server() -> list[str]:
    """The arguments of `headkv serve` for the needle model."""
    config = str(configs_dir() / "needle.yaml")
    return [str(checkpoint_path()), "--config", config, "--enable-prompt-tokens-details"]

# SPDX-License-Identifier: Apache-2.0
"""The samples of an evaluation, and the interface of tasks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """One prompt with the answers that count as right.

    id: unique within its task and length; the same arguments give the same ids.
    task: the task's name, such as "ruler/vt".
    context: the text before the question.
    question: the text after the context, with the words of the template.
    answer_prefix: the beginning of the answer: the end of the prompt, or in a chat the beginning
        of the assistant's message.
    answers: the accepted answers. The metric decides what several answers mean.
    length: the requested prompt tokens, special tokens included; 0 if the text is not cut.
    depth: the place of the needle in the context, 0 (start) to 1 (end); None without one needle.
    choices: all classes of a classification, or all labels of the task.
    """

    id: str
    task: str
    context: str
    question: str
    answers: tuple[str, ...]
    max_new_tokens: int
    length: int
    depth: float | None = None
    choices: tuple[str, ...] = ()
    answer_prefix: str = ""

    @property
    def prompt(self) -> str:
        """The prompt as plain text. The tokenizer adds its special tokens."""
        return self.context + self.question + self.answer_prefix


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer's interface that evaluations use."""

    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of `text`, by default with special tokens."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> Any:
        """The text of token ids: a string."""

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Any:
        """The chat as one text with special tokens: a string if `tokenize` is false."""


class Task(Protocol):
    """A source of samples, generated or read from files."""

    @property
    def name(self) -> str:
        """Family and task, such as "needle/single"."""

    @property
    def metric(self) -> str:
        """A name in `metrics.METRICS`."""

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None
    ) -> Iterator[Sample]:
        """At most `n` samples, the same for the same arguments. A lower `n` gives the first ones.

        length: prompt tokens, special tokens included. Generated prompts are as long as their parts
            allow, and never longer. Longer texts from files lose their middle; 0 keeps them whole.
        data: folder with a sub-folder for each family, such as `data/longbench`. Only tasks that
            read files need it.

        Raises HeadKVError at once when an argument is not allowed, or when a file is missing or not
        as expected. The iterator raises it when a question alone is longer than `length`.
        """

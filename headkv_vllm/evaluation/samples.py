# SPDX-License-Identifier: Apache-2.0
"""What a task asks, and what a task is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """One prompt with the answers that count as right.

    id: unique within its task and length; the same arguments give the same ids.
    task: the task's name, such as "ruler/vt".
    context: what can be read before the question is known.
    question: what follows it, with the template's words after the context.
    answer_prefix: what the answer is to go on from: the prompt's end, and in a chat the beginning
        of the assistant's message.
    answers: the accepted answers; what more than one of them means is the metric's.
    length: prompt tokens asked for, special tokens included; 0 where the text is taken as it is.
    depth: where in the context the needle stands, 0 (start) to 1 (end); None without one needle.
    choices: all classes of a classification, or all labels of its task.
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
        """All of it as plain text; the tokenizer adds its special tokens."""
        return self.context + self.question + self.answer_prefix


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of `text`, special tokens included unless told otherwise."""

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
        """The chat as one text, special tokens included: a string where nothing is tokenized."""


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
        """At most `n` samples, the same for the same arguments; the first of them for a lower n.

        length: prompt tokens, special tokens included. Generated prompts come as near to it as
            their parts allow and never above. Texts from files that are longer lose their middle;
            0 leaves them whole.
        data: folder with a sub-folder for each family, such as `data/longbench`; needed only by
            tasks that read files.

        Raises:
            HeadKVError: an argument is not allowed, or a file is missing or not as expected: both
                before the first sample is asked for. Or the next sample's question, without its
                text, is longer than `length`.
        """

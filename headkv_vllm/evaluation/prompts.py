# SPDX-License-Identifier: Apache-2.0
"""Turns samples into the tokens of prompts, as plain text or in the model's chat format."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from headkv_vllm.errors import EvaluationError, ModelError, shown
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder
from headkv_vllm.output.libraries import one_line, quiet

PROMPTS_FILE = "prompts.jsonl"
PROBE: Final = "<the user's message>"
TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Prompt:
    """A sample in tokens.

    ids: the whole prompt. num_context: how many leading tokens contain nothing of the question.
    """

    sample: Sample
    ids: tuple[int, ...]
    num_context: int

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens before the question."""
        return self.ids[: self.num_context]

    @property
    def question(self) -> tuple[int, ...]:
        """The tokens from the question on."""
        return self.ids[self.num_context :]


@dataclass(frozen=True)
class PromptFormat:
    """How a sample becomes a prompt.

    chat: context and question are a user's message in the tokenizer's chat template. If the sample
        has an answer prefix, the assistant's message begins with it, as in RULER's own code.
    max_tokens: a limit for the answer's tokens, besides the limit of the task.
    """

    tokenizer: Tokenizer
    chat: bool = False
    max_tokens: int | None = None

    def check(self, model: str) -> None:
        """Raises ModelError when `chat` is set but the tokenizer has no chat template."""
        if self.chat and not self.tokenizer.chat_template:
            raise ModelError(f"{model!r} has no chat template, which --chat needs")

    @property
    def num_template_tokens(self) -> int:
        """Tokens that the chat template adds to a prompt, and 2 for tokens that cannot merge."""
        if not self.chat:
            return 0
        probe = Sample("", "", "", "x", (), 0, 0)
        return len(self.prompt(probe).ids) - len(self._encode("x", special=False)) + 2

    def prompt(self, sample: Sample) -> Prompt:
        """The tokens of `sample`.

        A token with characters of both context and question belongs to the question, so that the
        context contains nothing of the question.
        """
        text, end = self._text(sample)
        ids = self._encode(text, special=not self.chat)
        context = self._encode(text[:end], special=not self.chat)
        common = 0
        for one, other in zip(ids, context, strict=False):
            if one != other:
                break
            common += 1
        if self.max_tokens is not None:
            sample = replace(sample, max_new_tokens=min(sample.max_new_tokens, self.max_tokens))
        return Prompt(sample, tuple(ids), common)

    def _text(self, sample: Sample) -> tuple[str, int]:
        """The whole text, and the index of the character at which the context ends."""
        if not self.chat:
            return sample.prompt, len(sample.context)
        # Many templates strip a message.
        context = sample.context.lstrip()
        prefix = sample.answer_prefix.strip()
        # A short context may also stand in the template, so a text that cannot finds the place.
        start = self._chat(PROBE, prefix).index(PROBE)
        return self._chat(context + sample.question, prefix), start + len(context)

    def _chat(self, content: str, prefix: str) -> str:
        """A chat in which the user says `content`, up to the answer, which begins with `prefix`."""
        messages = [{"role": "user", "content": content}]
        if prefix:
            messages.append({"role": "assistant", "content": prefix})
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not prefix,
            continue_final_message=bool(prefix),
        )
        return text

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=special)


def write_prompts(prompts: Iterable[Prompt], folder: Path) -> None:
    """Write `prompts.jsonl`, one prompt per line, so that other programs can use the same prompts.

    Raises EvaluationError when the file cannot be written.
    """
    path = folder / PROMPTS_FILE
    try:
        path.write_text("".join(json.dumps(asdict(prompt)) + "\n" for prompt in prompts))
    except OSError as error:
        raise EvaluationError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def read_prompts(folder: Path) -> list[Prompt]:
    """The prompts that `write_prompts` wrote."""
    adapter = TypeAdapter(Prompt)
    lines = (folder / PROMPTS_FILE).read_text().split("\n")
    return [adapter.validate_json(line) for line in lines if line]


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of `model`, a folder or a hub's name. Raises ModelError if it has none."""
    from transformers import AutoTokenizer

    folder = find_checkpoint_folder(model, files=TOKENIZER_FILES)
    try:
        with quiet():
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"{shown(model)} has no usable tokenizer: {one_line(error)}") from None
    return tokenizer

# SPDX-License-Identifier: Apache-2.0
"""Samples as the tokens that a server is sent, as plain text or in the model's chat format."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from headkv_vllm.errors import ModelError
from headkv_vllm.evaluation.results import EvaluationError
from headkv_vllm.evaluation.samples import Sample, Tokenizer

PROMPTS_FILE = "prompts.jsonl"


@dataclass(frozen=True)
class Prompt:
    """A sample in tokens.

    ids: all of it. num_context: the leading ones that hold nothing of the question.
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

    chat: context and question are a user's message in the tokenizer's chat template, and the answer
        begins as the assistant's: with the sample's answer prefix where it has one, as in RULER's
        own code.
    max_tokens: of an answer, where its task would let it be longer.
    """

    tokenizer: Tokenizer
    chat: bool = False
    max_tokens: int | None = None

    def check(self, model: str) -> None:
        """Raises ModelError where there is no chat template to use."""
        if self.chat and not self.tokenizer.chat_template:
            raise ModelError(f"{model!r} has no chat template, which --chat needs")

    @property
    def num_template_tokens(self) -> int:
        """What the template adds to a prompt, and two for tokens that no longer merge."""
        if not self.chat:
            return 0
        probe = Sample("", "", "", "x", (), 0, 0)
        return len(self.prompt(probe).ids) - len(self._encode("x", special=False)) + 2

    def prompt(self, sample: Sample) -> Prompt:
        """The tokens of `sample`.

        Where the last token of the context would merge with the question's first, it is the
        question's: no part of a question is in the context.
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
        """The whole text, and where the context ends in it."""
        if not self.chat:
            return sample.prompt, len(sample.context)
        # Many templates strip a message.
        context = sample.context.lstrip()
        messages = [{"role": "user", "content": context + sample.question}]
        prefix = sample.answer_prefix.strip()
        if prefix:
            messages.append({"role": "assistant", "content": prefix})
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not prefix,
            continue_final_message=bool(prefix),
        )
        return text, text.index(context) + len(context) if context else 0

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=special)


def write_prompts(prompts: Iterable[Prompt], folder: Path) -> None:
    """Write `prompts.jsonl`, a prompt a line, so that others can be asked the same.

    Raises EvaluationError.
    """
    path = folder / PROMPTS_FILE
    try:
        path.write_text("".join(json.dumps(asdict(prompt)) + "\n" for prompt in prompts))
    except OSError as error:
        raise EvaluationError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def read_prompts(folder: Path) -> list[Prompt]:
    """What `write_prompts` wrote."""
    adapter = TypeAdapter(Prompt)
    lines = (folder / PROMPTS_FILE).read_text().split("\n")
    return [adapter.validate_json(line) for line in lines if line]

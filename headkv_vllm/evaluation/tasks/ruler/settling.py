# SPDX-License-Identifier: Apache-2.0
"""From a draft to a sample of the length asked for."""

from dataclasses import dataclass

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.ruler.draft import Draft


@dataclass(frozen=True)
class Settler:
    """Settles the drafts of one task at one length."""

    task: str
    max_new_tokens: int
    length: int
    tokenizer: Tokenizer

    def check_room(self, draft: Draft) -> None:
        """Raises SettingsError when the smallest prompt of `draft` is longer than asked for."""
        needed = draft.num_tokens(draft.smallest, self.tokenizer)
        if needed > self.length:
            raise SettingsError(
                f"length is {self.length}, but the shortest prompt of {self.task} has {needed}"
                " tokens with this tokenizer"
            )

    def settle(self, draft: Draft, name: str) -> Sample:
        """The longest sample that fits, named `name`. Raises SettingsError when none does."""
        size = draft.largest_size(self.length, self.tokenizer)
        if size is None:
            self.check_room(draft)
        assert size is not None
        return Sample(
            id=name,
            task=self.task,
            context=draft.context(size),
            question=draft.question,
            answer_prefix=draft.answer_prefix,
            answers=draft.answers,
            max_new_tokens=self.max_new_tokens,
            length=self.length,
            depth=draft.depth,
        )

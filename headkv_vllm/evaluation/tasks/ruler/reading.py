# SPDX-License-Identifier: Apache-2.0
"""Questions about paragraphs among others: SQuAD (qa_1) and HotpotQA (qa_2), from their files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from headkv_vllm.errors import SamplesError
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.arguments import check_numbers, draw
from headkv_vllm.evaluation.tasks.files import find_file
from headkv_vllm.evaluation.tasks.ruler.draft import Draft
from headkv_vllm.evaluation.tasks.ruler.filler import Lines, spread
from headkv_vllm.evaluation.tasks.ruler.questions import Question, read_hotpotqa, read_squad
from headkv_vllm.evaluation.tasks.ruler.settling import Settler

MAX_NEW_TOKENS: Final = 32
_HEAD: Final = (
    "Answer the question at the end from the documents below, with the answer only and no other"
    " words."
)
_SOURCES: Final[dict[str, tuple[tuple[str, ...], Callable[[Path], list[Question]]]]] = {
    "qa_1": (("squad.json", "dev-v2.0.json"), read_squad),
    "qa_2": (("hotpotqa.json", "hotpot_dev_distractor_v1.json"), read_hotpotqa),
}


@dataclass(frozen=True)
class RulerReadingTask:
    """`ruler/qa_1` or `ruler/qa_2`."""

    kind: str
    metric: str = "string_match_part"

    @property
    def name(self) -> str:
        """`ruler/qa_1` and so on."""
        return f"ruler/{self.kind}"

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`. Raises SettingsError when a question's own paragraphs do not fit."""
        check_numbers(n, length, seed)
        files, read = _SOURCES[self.kind]
        path = find_file(self.name, data, files)
        questions = read(path)
        if not questions:
            raise SamplesError(f"{path} has no question with an answer")
        documents = tuple(dict.fromkeys(text for q in questions for text in q.documents))
        settler = Settler(self.name, MAX_NEW_TOKENS, length, tokenizer)
        drawn = draw(questions, n, seed)
        drafts = ((_draft(question, documents, seed), question.id) for question in drawn)
        return (settler.settle(draft, name) for draft, name in drafts)


def _draft(question: Question, documents: tuple[str, ...], seed: int) -> Draft:
    """The question's own documents among others, in an order of the seed and the question."""
    rng = np.random.default_rng([seed, *question.id.encode()])
    own = set(question.documents)
    order = rng.permutation(len(documents)).tolist()
    others = [documents[i] for i in order if documents[i] not in own]
    depths = rng.uniform(size=len(question.documents)).tolist()
    filler = Lines(iter(others))

    def context(size: int) -> str:
        texts = spread(filler(size), question.documents, depths)
        numbered = (f"Document {i}:\n{text}" for i, text in enumerate(texts, 1))
        return "\n\n".join((_HEAD, *numbered))

    return Draft(
        context=context,
        question=f"\n\nQuestion: {question.text}",
        answer_prefix="\nAnswer:",
        answers=question.answers,
        depth=depths[0] if len(depths) == 1 else None,
        smallest=0,
        largest=len(others),
    )

# SPDX-License-Identifier: Apache-2.0
"""LongBench (arXiv 2308.14508), from the files of its authors.

Beside the data sets, `dataset2prompt.json` and `dataset2maxlen.json` of the authors are taken for
prompts and answer lengths where they are found; the prompts here say the same in other words.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, Field, RootModel

from headkv_vllm.errors import SamplesError
from headkv_vllm.evaluation.metrics.chinese import check_jieba
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.arguments import check_numbers, draw
from headkv_vllm.evaluation.tasks.files import find_file, read_document, read_rows
from headkv_vllm.evaluation.tasks.fitting import cut_middle
from headkv_vllm.evaluation.tasks.longbench_sets import DATA_SETS, DataSet


class Row(BaseModel):
    """A line of a data set. Fields that are not used are not looked at."""

    input: str
    context: str
    answers: Annotated[tuple[str, ...], Field(min_length=1)]
    all_classes: Annotated[tuple[str, ...], BeforeValidator(lambda value: value or ())] = ()
    id: str = Field(alias="_id")


class Prompts(RootModel[dict[str, str]]):
    """`dataset2prompt.json`: a template with {context} and {input} for each data set."""


class AnswerLengths(RootModel[dict[str, int]]):
    """`dataset2maxlen.json`: the most tokens of an answer for each data set."""


@dataclass(frozen=True)
class LongBenchTask:
    """`longbench/<data set>`."""

    data_set: DataSet

    @property
    def name(self) -> str:
        """`longbench/qasper` and so on."""
        return f"longbench/{self.data_set.name}"

    @property
    def metric(self) -> str:
        """As in the authors' table."""
        return self.data_set.metric

    def samples(
        self, n: int, length: int, seed: int, tokenizer: Tokenizer, data: Path | None = None
    ) -> Iterator[Sample]:
        """See `Task`."""
        check_numbers(n, length, seed)
        check_jieba(self.metric)
        path = find_file(self.name, data, [f"{self.data_set.name}.jsonl"])
        template = self._template(path)
        max_new_tokens = self._max_new_tokens(path)
        rows = draw(read_rows(path, Row), n, seed)
        return (self._sample(row, template, max_new_tokens, length, tokenizer) for row in rows)

    def _template(self, path: Path) -> str:
        config = _beside(path, "dataset2prompt.json")
        prompts = read_document(config, Prompts).root if config else {}
        template = prompts.get(self.data_set.name, self.data_set.template)
        if template.count("{context}") != 1:
            raise SamplesError(f"{config}: {self.data_set.name}: must have {{context}} once")
        return template

    def _max_new_tokens(self, path: Path) -> int:
        config = _beside(path, "dataset2maxlen.json")
        lengths = read_document(config, AnswerLengths).root if config else {}
        return lengths.get(self.data_set.name, self.data_set.max_new_tokens)

    def _sample(
        self, row: Row, template: str, max_new_tokens: int, length: int, tokenizer: Tokenizer
    ) -> Sample:
        before, after = (part.replace("{input}", row.input) for part in template.split("{context}"))
        context = cut_middle(before + row.context, after, length, tokenizer)
        if context is None:
            raise SamplesError(f"{self.name}: question {row.id} alone is over {length} tokens")
        return Sample(
            id=row.id,
            task=self.name,
            context=context,
            question=after,
            answers=row.answers,
            max_new_tokens=max_new_tokens,
            length=length,
            choices=row.all_classes,
        )


def _beside(path: Path, name: str) -> Path | None:
    """A file in the folder of `path`, in the one above, or in `config` of either."""
    here, above = path.resolve().parents[:2]
    folders = (here, here / "config", above, above / "config")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


LONGBENCH_TASKS: Final = tuple(map(LongBenchTask, DATA_SETS))

# SPDX-License-Identifier: Apache-2.0
"""LongBench (arXiv 2308.14508), read from the files of its authors.

Metrics and answer lengths are those of the authors. If their `dataset2prompt.json` and
`dataset2maxlen.json` lie beside the data sets, prompts and answer lengths come from these files.
The prompts here have the same meaning in other words.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, Field, RootModel

from headkv_vllm.errors import SamplesError
from headkv_vllm.evaluation.metrics.overlap import check_jieba
from headkv_vllm.evaluation.samples import Sample, Tokenizer
from headkv_vllm.evaluation.tasks.files import draw, find_file, read_document, read_rows
from headkv_vllm.evaluation.tasks.fitting import check_numbers, cut_middle


@dataclass(frozen=True)
class LongBenchDataSet:
    """One file of the benchmark. `template` has {context} once, and {input} if it is used."""

    name: str
    metric: str
    max_new_tokens: int
    template: str


_QA: Final = (
    "Read the text and answer the question after it in as few words as possible, without any"
    " explanation.\n\n{context}\n\nQuestion: {input}\nAnswer:"
)
_QASPER: Final = (
    "Read the article and answer the question after it in one phrase or sentence. Write"
    ' "unanswerable" if the article does not say, and "yes", "no" or "unanswerable" to a yes/no'
    " question.\n\n{context}\n\nQuestion: {input}\nAnswer:"
)
_QA_ZH: Final = (
    "请阅读以下文章，然后简短地回答问题，不要解释。\n\n{context}\n\n问题：{input}\n回答："  # noqa: RUF001
)
_SUMMARY: Final = "Read the text.\n\n{context}\n\nWrite a summary of it on one page.\n\nSummary:"
_MEETING: Final = (
    "Read the transcript of a meeting.\n\n{context}\n\nAnswer in one or more sentences.\n"
    "Question: {input}\nAnswer:"
)
_SUMMARY_ZH: Final = "请阅读以下会议记录。\n\n{context}\n\n请写出会议总结。\n\n会议总结："  # noqa: RUF001
_EXAMPLES: Final = "{what} The examples show how.\n\n{{context}}\n{{input}}"
_NEWS_ZH: Final = "请参照例子，判断最后一条新闻的类别。\n\n{context}\n{input}"  # noqa: RUF001
_COUNT: Final = (
    "Some of the paragraphs below are repeated. Compare them.\n\n{context}\n\nHow many different"
    " paragraphs are there? Answer with the number only.\n\nNumber:"
)
_RETRIEVAL: Final = (
    "Here are 30 numbered paragraphs, and a summary of one of them.\n\n{context}\n\nSummary:"
    ' {input}\n\nName the paragraph that was summarised, like "Paragraph 1".\n\nAnswer:'
)
_RETRIEVAL_ZH: Final = (
    "以下是若干个编号的段落，以及其中一个段落的摘要。\n\n{context}\n\n摘要：{input}\n\n"  # noqa: RUF001
    "请指出摘要属于哪个段落，格式如“段落1”。\n\n答案："  # noqa: RUF001
)
_CODE: Final = "Complete the code.\n{context}{input}Next line of code:\n"

DATA_SETS: Final = (
    LongBenchDataSet("narrativeqa", "qa_f1", 128, _QA),
    LongBenchDataSet("qasper", "qa_f1", 128, _QASPER),
    LongBenchDataSet("multifieldqa_en", "qa_f1", 64, _QA),
    LongBenchDataSet("multifieldqa_zh", "qa_f1_zh", 64, _QA_ZH),
    LongBenchDataSet("hotpotqa", "qa_f1", 32, _QA),
    LongBenchDataSet("2wikimqa", "qa_f1", 32, _QA),
    LongBenchDataSet("musique", "qa_f1", 32, _QA),
    LongBenchDataSet("dureader", "rouge_zh", 128, _QA_ZH),
    LongBenchDataSet("gov_report", "rouge", 512, _SUMMARY),
    LongBenchDataSet("qmsum", "rouge", 512, _MEETING),
    LongBenchDataSet("multi_news", "rouge", 512, _SUMMARY),
    LongBenchDataSet("vcsum", "rouge_zh", 512, _SUMMARY_ZH),
    LongBenchDataSet(
        "trec",
        "classification_first_line",
        64,
        _EXAMPLES.format(what="Name the type of the last question."),
    ),
    LongBenchDataSet(
        "triviaqa",
        "qa_f1_first_line",
        32,
        _EXAMPLES.format(what="Answer the last question from its passage, with the answer only."),
    ),
    LongBenchDataSet(
        "samsum",
        "rouge_first_line",
        128,
        _EXAMPLES.format(what="Summarise the last dialogue in a few short sentences."),
    ),
    LongBenchDataSet("lsht", "classification_first_line", 64, _NEWS_ZH),
    LongBenchDataSet("passage_count", "count", 32, _COUNT),
    LongBenchDataSet("passage_retrieval_en", "retrieval", 32, _RETRIEVAL),
    LongBenchDataSet("passage_retrieval_zh", "retrieval_zh", 32, _RETRIEVAL_ZH),
    LongBenchDataSet("lcc", "code_similarity", 64, _CODE),
    LongBenchDataSet("repobench-p", "code_similarity", 64, _CODE),
)


class LongBenchRow(BaseModel):
    """A line of a data set. Other fields are ignored."""

    input: str
    context: str
    answers: Annotated[tuple[str, ...], Field(min_length=1)]
    all_classes: Annotated[tuple[str, ...], BeforeValidator(lambda value: value or ())] = ()
    id: str = Field(alias="_id")


class Prompts(RootModel[dict[str, str]]):
    """`dataset2prompt.json`: a template with {context} and {input} for each data set."""


class AnswerLengths(RootModel[dict[str, int]]):
    """`dataset2maxlen.json`: the maximum number of answer tokens for each data set."""


@dataclass(frozen=True)
class LongBenchTask:
    """`longbench/<data set>`."""

    data_set: LongBenchDataSet

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
        rows = draw(read_rows(path, LongBenchRow), n, seed)
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
        self,
        row: LongBenchRow,
        template: str,
        max_new_tokens: int,
        length: int,
        tokenizer: Tokenizer,
    ) -> Sample:
        before, after = (part.replace("{input}", row.input) for part in template.split("{context}"))
        context = cut_middle(before + row.context, after, length, tokenizer)
        if context is None:
            raise SamplesError(
                f"{self.name}: question {row.id} alone has more than {length} tokens"
            )
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

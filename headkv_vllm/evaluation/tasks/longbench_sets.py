# SPDX-License-Identifier: Apache-2.0
"""LongBench's data sets: metric and answer length as the authors set them, prompts in our words."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class DataSet:
    """One file of the benchmark; `template` has {context} once, and {input} where it is used."""

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
    DataSet("narrativeqa", "qa_f1", 128, _QA),
    DataSet("qasper", "qa_f1", 128, _QASPER),
    DataSet("multifieldqa_en", "qa_f1", 64, _QA),
    DataSet("multifieldqa_zh", "qa_f1_zh", 64, _QA_ZH),
    DataSet("hotpotqa", "qa_f1", 32, _QA),
    DataSet("2wikimqa", "qa_f1", 32, _QA),
    DataSet("musique", "qa_f1", 32, _QA),
    DataSet("dureader", "rouge_zh", 128, _QA_ZH),
    DataSet("gov_report", "rouge", 512, _SUMMARY),
    DataSet("qmsum", "rouge", 512, _MEETING),
    DataSet("multi_news", "rouge", 512, _SUMMARY),
    DataSet("vcsum", "rouge_zh", 512, _SUMMARY_ZH),
    DataSet(
        "trec",
        "classification_first_line",
        64,
        _EXAMPLES.format(what="Name the type of the last question."),
    ),
    DataSet(
        "triviaqa",
        "qa_f1_first_line",
        32,
        _EXAMPLES.format(what="Answer the last question from its passage, with the answer only."),
    ),
    DataSet(
        "samsum",
        "rouge_first_line",
        128,
        _EXAMPLES.format(what="Summarise the last dialogue in a few short sentences."),
    ),
    DataSet("lsht", "classification_first_line", 64, _NEWS_ZH),
    DataSet("passage_count", "count", 32, _COUNT),
    DataSet("passage_retrieval_en", "retrieval", 32, _RETRIEVAL),
    DataSet("passage_retrieval_zh", "retrieval_zh", 32, _RETRIEVAL_ZH),
    DataSet("lcc", "code_similarity", 64, _CODE),
    DataSet("repobench-p", "code_similarity", 64, _CODE),
)

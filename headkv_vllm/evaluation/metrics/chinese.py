# SPDX-License-Identifier: Apache-2.0
"""Chinese words, by jieba, which is installed only where it is wanted."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from headkv_vllm.errors import SettingsError

NEEDS_JIEBA: Final = frozenset(("qa_f1_zh", "rouge_zh"))
"""The metrics that cannot do without."""

# What LongBench leaves out of a word, beside ASCII punctuation.
PUNCTUATION: Final = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"  # noqa: RUF001
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)


def check_jieba(metric: str) -> None:
    """Raises SettingsError when `metric` needs jieba and it is not installed."""
    if metric in NEEDS_JIEBA and find_spec("jieba") is None:
        raise SettingsError(f"metric {metric!r} cuts Chinese words: run `pip install jieba` first")


def cut(text: str) -> Iterable[str]:
    """The words of `text` in their order. Raises SettingsError when jieba is not installed."""
    check_jieba("qa_f1_zh")
    words: Iterable[str] = import_module("jieba").cut(text, cut_all=False)
    return words

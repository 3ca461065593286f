# SPDX-License-Identifier: Apache-2.0
"""ROUGE-L of a summary (Lin, 2004), as LongBench takes it from the package `rouge` 1.0.1."""

from headkv_vllm.evaluation.metrics.chinese import cut
from headkv_vllm.evaluation.metrics.subsequence import longest_common_subsequence
from headkv_vllm.evaluation.samples import Sample


def rouge(sample: Sample, generated: str) -> float:
    """F of the union of longest common subsequences between the sentences of both texts.

    A sentence ends with a full stop. Each different word counts once, as in that package.
    """
    return max(_rouge_l(answer, generated) for answer in sample.answers)


def rouge_zh(sample: Sample, generated: str) -> float:
    """The same of the words that jieba cuts. Raises SettingsError when it is not installed."""
    said = " ".join(cut(generated))
    return max(_rouge_l(" ".join(cut(answer)), said) for answer in sample.answers)


def _rouge_l(answer: str, generated: str) -> float:
    expected, said = _sentences(answer), _sentences(generated)
    common = {
        word
        for sentence in expected
        for other in said
        for word in longest_common_subsequence(sentence, other)
    }
    if not common:
        return 0.0
    num_expected = len({word for sentence in expected for word in sentence})
    num_said = len({word for sentence in said for word in sentence})
    return 2 * len(common) / (num_expected + num_said)


def _sentences(text: str) -> list[list[str]]:
    """The words of each; space after a full stop is a sentence of one empty word there."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]

# SPDX-License-Identifier: Apache-2.0
"""Metrics against values worked out by hand, and what holds for all of them."""

from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.metrics.overlap import NEEDS_JIEBA, longest_common_subsequence
from headkv_vllm.evaluation.samples import Sample

TREC = ("Person", "Title of a Person", "Other number", "Date")
ROOMS = ("bathroom", "garden", "kitchen")
FRUIT = ("apple", "football", "milk")
ROUTES = ("e,e", "n,w", "w,n")
NEEDLES = "anna red-1 red-2 ; john red-3 red-4 ;"


def sample(*answers: str, choices: tuple[str, ...] = ()) -> Sample:
    return Sample("0", "task", "context", "question", answers, 8, 0, None, choices)


BY_HAND = [
    ("needle", sample(NEEDLES), "anna red-1 red-2 ; john red-3 red-4 ; more", 1),
    ("needle", sample(NEEDLES), "anna red-1 red-2 ; john red-3 red-9 ;", 1 / 2),  # one of two
    ("needle", sample(NEEDLES), "john red-3 red-4 ; anna red-1 red-2 ;", 0),  # not in place
    ("string_match_all", sample("12", "34", "56", "78"), "they are 12, 78 and 90", 2 / 4),
    ("string_match_all", sample("Amber-Otter"), "AMBER-OTTER!", 1),
    ("string_match_part", sample("Paris", "the capital"), "it is paris", 1),
    ("string_match_part", sample("Paris", "the capital"), "it is Rome", 0),
    ("words_match", sample("12 crowns", "12"), "It costs 12 Crowns.", 1),
    ("words_match", sample("12"), "from 120 to 1,012, at 2:12 or for 3.12", 0),
    ("words_match", sample("8:05"), "It opens at 8:05.", 1),
    ("words_match", sample("Ada Fisher", "Fisher"), "the Fishers", 0),
    # Words "boat" "sank" of two, said "boat" "sank" "in" "may": P 2/4, R 2/2, F 2 * .5 / 1.5.
    ("qa_f1", sample("The boat sank."), "A boat sank in May", 2 / 3),
    # Repeated words count as often as both have them: b once, P 1/2, R 1/3, F (1/3) / (5/6).
    ("qa_f1", sample("b c d"), "b b", 2 / 5),
    ("qa_f1", sample("north", "south"), "South", 1),  # the best answer
    ("qa_f1", sample("don't-know"), "dontknow", 1),  # punctuation goes, no space comes
    ("qa_f1", sample("theatre"), "theatre", 1),  # no article inside a word
    ("qa_f1", sample("the"), "the", 0),  # nothing is left, as in SQuAD's script
    ("qa_f1", sample("boat"), "\nboat\nQuestion: more", 1 / 2),  # P 1/3, R 1
    ("qa_f1_first_line", sample("boat"), "\nboat\nQuestion: more", 1),
    # LCS of "the cat sat on the mat" and "the cat lay on a mat": the cat on mat, 4 different words.
    # 5 different words expected (the, cat, sat, on, mat), 6 said: F 2 * 4 / 11.
    ("rouge", sample("the cat sat on the mat"), "the cat lay on a mat", 8 / 11),
    # Sentences "a b c" and "d e" against "e d", "c a b": unions {a b} and {d} or {e}: 3 of 5 and 5.
    ("rouge", sample("a b c.d e"), "e d.c a b", 6 / 10),
    ("rouge", sample("a b"), "...", 0),
    # Space after the last full stop counts as an empty word: {a, b, ""} against {a, b}.
    ("rouge", sample("a b. "), "a b", 4 / 5),
    ("rouge_first_line", sample("a b"), "a b\nc d", 1),
    ("classification_first_line", sample("Date", choices=TREC), "Date\nPerson", 1),
    ("classification_first_line", sample("Date", choices=TREC), "Date or Other number", 1 / 2),
    # "Person" is part of the right class, so naming it costs nothing.
    ("classification_first_line", sample(TREC[1], choices=TREC), "It is Title of a Person", 1),
    ("classification_first_line", sample("Person", choices=TREC), "Title of a Person", 1 / 2),
    ("classification_first_line", sample("Date", choices=TREC), "Person", 0),
    ("retrieval", sample("Paragraph 13"), "Paragraph 13, not 3", 1 / 2),
    ("retrieval", sample("Paragraph 13"), "Paragraph 130", 0),
    ("retrieval", sample("Paragraph 13"), "no idea", 0),
    ("retrieval_zh", sample("段落13"), "段落13", 1),
    ("count", sample("7"), "7 of 10, that is 7", 2 / 3),
    ("count", sample("7"), "seven", 0),
    # The first line that is neither comment nor fence. LCS of "return x" and "return y" is 7
    # letters: 2 * 7 / 16 = 0.875, in hundredths 0.88.
    ("code_similarity", sample("return x"), "\n```\n# so\nreturn y\nreturn x", 0.88),
    ("code_similarity", sample("x"), "# only a comment", 0),
    ("choice_letter", sample("B"), "The correct answer is **(B)**, not (C)", 1),
    ("choice_letter", sample("B"), "The correct answer is B.", 1),
    ("choice_letter", sample("B"), "B", 0),  # not in the form asked for
    # The form with brackets is looked for in the whole text first.
    ("choice_letter", sample("B"), "The correct answer is A? The correct answer is (B)", 1),
    ("labels", sample("garden", choices=ROOMS), "In the Garden. Or the kitchen", 1),
    ("labels", sample("garden", choices=ROOMS), "garden or kitchen", 0),
    ("labels", sample("garden", choices=ROOMS), "garden <example> kitchen", 1),
    ("labels", sample("garden", choices=("kitchen",)), "garden", 0),  # it is in the question
    ("labels", sample("apple,milk", choices=FRUIT), "milk and apple", 1),
    ("labels", sample("apple,milk", choices=FRUIT), "apple", 0),
    ("labels", sample("n,w", choices=ROUTES), "n,w", 1),  # a label, not a list
]


@pytest.mark.parametrize(("metric", "given_sample", "generated", "value"), BY_HAND)
def test_values_worked_out_by_hand(
    metric: str, given_sample: Sample, generated: str, value: float
) -> None:
    assert METRICS[metric](given_sample, generated) == pytest.approx(value)


def test_every_metric_is_worked_out_by_hand() -> None:
    assert {metric for metric, *_ in BY_HAND} == METRICS.keys() - NEEDS_JIEBA


WORDS = st.lists(st.sampled_from("ant bee cat dog elk".split()), min_size=1).map(" ".join)
ANSWERS = {
    "needle": WORDS,
    "string_match_all": st.text(min_size=1),
    "string_match_part": st.text(min_size=1),
    "words_match": st.from_regex(r"[a-z0-9]+( [a-z0-9]+)*", fullmatch=True),
    "qa_f1": WORDS,
    "qa_f1_first_line": WORDS,
    "rouge": WORDS,
    "rouge_first_line": WORDS,
    "classification_first_line": st.sampled_from(TREC),
    "retrieval": st.integers(0).map(lambda number: f"Paragraph {number}"),
    "retrieval_zh": st.integers(0).map(lambda number: f"段落{number}"),
    "count": st.integers(0).map(str),
    "code_similarity": st.text("abc =()", min_size=1),
    "labels": st.sampled_from(ROOMS),
}
CHOICES = {"classification_first_line": TREC, "labels": ROOMS}


@pytest.mark.parametrize("metric", ANSWERS)
@given(data=st.data())
def test_the_answer_itself_is_right(metric: str, data: st.DataObject) -> None:
    answer = data.draw(ANSWERS[metric])
    asked = sample(answer, choices=CHOICES.get(metric, ()))
    assert METRICS[metric](asked, answer) == pytest.approx(1)


@pytest.mark.parametrize("metric", sorted(METRICS.keys() - NEEDS_JIEBA))
@given(
    answers=st.lists(st.text(min_size=1) | WORDS, min_size=1, max_size=3),
    generated=st.text() | WORDS,
)
def test_values_are_from_0_to_1(metric: str, answers: list[str], generated: str) -> None:
    if metric == "needle":
        answers = ["anna red-1 ;"]
    value = METRICS[metric](sample(*answers, choices=tuple(answers)), generated)
    assert isinstance(value, float | int) and 0 <= value <= 1


@pytest.mark.parametrize("metric", sorted(METRICS.keys() - NEEDS_JIEBA - {"string_match_all"}))
@given(generated=st.text(), answer=WORDS)
def test_another_answer_beside_does_no_harm(metric: str, generated: str, answer: str) -> None:
    one = sample(answer, choices=(answer,))
    two = sample(answer, "elk elk", choices=(answer,))
    assert METRICS[metric](two, generated) >= METRICS[metric](one, generated)


@given(left=st.text("abc", max_size=7), right=st.text("abc", max_size=7))
def test_the_longest_common_subsequence_is_one(left: str, right: str) -> None:
    found = longest_common_subsequence(left, right)
    common = set(_subsequences(left)) & set(_subsequences(right))
    assert "".join(found) in common
    assert len(found) == max(map(len, common))


@pytest.mark.skipif(find_spec("jieba") is not None, reason="jieba is installed")
@pytest.mark.parametrize("metric", sorted(NEEDS_JIEBA))
def test_chinese_words_need_jieba(metric: str) -> None:
    with pytest.raises(SettingsError, match="pip install jieba"):
        METRICS[metric](sample("回答"), "回答")


@pytest.mark.skipif(find_spec("jieba") is None, reason="jieba is not installed")
@pytest.mark.parametrize("metric", sorted(NEEDS_JIEBA))
def test_chinese_answers_are_cut_into_words(metric: str) -> None:
    assert METRICS[metric](sample("今天天气很好"), "今天天气很好") == pytest.approx(1)
    assert METRICS[metric](sample("今天天气很好"), "不知道") == 0


def _subsequences(text: str) -> list[str]:
    found = [""]
    for letter in text:
        found += [start + letter for start in found]
    return found

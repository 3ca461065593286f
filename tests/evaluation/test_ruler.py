# SPDX-License-Identifier: Apache-2.0
"""RULER's generated tasks: lengths, answers, seeds, and what makes each kind."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.errors import SamplesError, SettingsError
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.samples import Sample
from headkv_vllm.evaluation.tasks.fitting import largest_fit
from headkv_vllm.evaluation.tasks.ruler import RULER_TASKS, RulerTask
from headkv_vllm.evaluation.tasks.ruler.filler import FIRST_WORDS, SECOND_WORDS
from tests.scoring.small_models import small_tokenizer

TOKENIZER = small_tokenizer()
TASKS = {task.kind: task for task in RULER_TASKS}
GENERATED = [task for task in RULER_TASKS if isinstance(task, RulerTask)]
EACH = pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.kind)

# What a step of each task's filler adds, in bytes: a token is a byte here. Others add a word.
LARGEST_STEP = {
    "niah_multikey_2": 60,  # a needle with names
    "niah_multikey_3": 110,  # a needle with codes
    "cwe": 20,  # a numbered name
    "fwe": 70,  # a few coded words at once
}
LONGEST_WORD = 20


def samples(kind: str, n: int = 3, length: int = 6000, seed: int = 4) -> list[Sample]:
    if kind == "cwe":
        length = 3900  # a token is a byte here, so that longer lists do not fit below 15,000
    return list(TASKS[kind].samples(n, length, seed, TOKENIZER, None))


def num_tokens(sample: Sample) -> int:
    return len(TOKENIZER.encode(sample.prompt))


@EACH
def test_prompts_are_as_long_as_they_may_be(task: RulerTask) -> None:
    for sample in samples(task.kind):
        room = sample.length - num_tokens(sample)
        assert 0 <= room <= LARGEST_STEP.get(task.kind, LONGEST_WORD)


@EACH
def test_answers_stand_in_the_context_and_not_in_the_question(task: RulerTask) -> None:
    for sample in samples(task.kind):
        assert all(answer in sample.context for answer in sample.answers)
        assert not any(answer in sample.question for answer in sample.answers)
        assert METRICS[task.metric](sample, " ".join(sample.answers)) == 1
        assert METRICS[task.metric](sample, sample.question) == 0


@EACH
def test_the_seed_decides(task: RulerTask) -> None:
    first, again, other = (samples(task.kind, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert samples(task.kind, n=2, seed=1) == first[:2]
    texts = [sample.context for sample in (*first, *other)]
    assert len(set(texts)) == len(texts)
    assert len({sample.id for sample in first}) == len(first)


def test_tasks_draw_texts_of_their_own() -> None:
    texts = [
        sample.context for kind in ("niah_single_2", "niah_multikey_1") for sample in samples(kind)
    ]
    assert len({text[200:300] for text in texts}) == len(texts)


@EACH
def test_a_length_without_room_is_refused_at_once(task: RulerTask) -> None:
    with pytest.raises(SettingsError, match=f"length is 50, but the shortest .* ruler/{task.kind}"):
        task.samples(1, 50, 1, TOKENIZER)


ASKED = {  # answers, and needles of the asked keys' kind in the text
    "niah_single_1": (1, 1),
    "niah_single_2": (1, 1),
    "niah_single_3": (1, 1),
    "niah_multikey_1": (1, 4),
    "niah_multivalue": (4, 4),
    "niah_multiquery": (4, 4),
}


@pytest.mark.parametrize(("kind", "counts"), ASKED.items())
def test_needles_are_as_many_as_the_paper_has(kind: str, counts: tuple[int, int]) -> None:
    for sample in samples(kind):
        found = re.findall(r"A secret \w+ of (\S+) is ([\w-]+)\.", sample.context)
        assert (len(sample.answers), len(found)) == counts
        asked = [value for key, value in found if key in sample.question]
        assert sorted(asked) == sorted(sample.answers)


@pytest.mark.parametrize("kind", ["niah_multikey_2", "niah_multikey_3"])
def test_a_haystack_of_needles_is_nothing_else(kind: str) -> None:
    for sample in samples(kind):
        lines = sample.context.split("\n\n", 1)[1].split("\n")
        found = [re.fullmatch(r"A secret \w+ of (\S+) is ([\w-]+)\.", line) for line in lines]
        keys = [match[1] for match in found if match]
        assert len(set(keys)) == len(lines) > 30
        asked = [m for m in found if m and m[1] in sample.question]
        assert [match[2] for match in asked] == list(sample.answers)


@pytest.mark.parametrize("kind", [task.kind for task in GENERATED if "niah" in task.kind])
def test_the_depth_is_where_the_needle_stands(kind: str) -> None:
    for sample in samples(kind, length=8000):
        if len(sample.answers) > 1:
            assert sample.depth is None
            continue
        text = sample.context.split("\n\n", 1)[1]
        # In sentences of unequal length, near the same place in letters.
        assert sample.depth == pytest.approx(text.index(sample.answers[0]) / len(text), abs=0.1)


def test_depths_are_spread_over_the_text() -> None:
    depths = [sample.depth for sample in samples("niah_single_1", n=40, length=1000)]
    counts = Counter(int(4 * depth) for depth in depths if depth is not None)
    assert sum(counts.values()) == 40 and set(counts) == {0, 1, 2, 3}


def test_variables_form_one_chain_in_order() -> None:
    for sample in samples("vt"):
        text = sample.context.rpartition("\n\n")[2]  # after the solved example
        [(first, value)] = re.findall(r"VAR (\w+) = (\d+)", text)
        hops = re.findall(r"VAR (\w+) = VAR (\w+)", text)
        assert value in sample.question
        assert sample.answers == (first, *(name for name, _ in hops))
        assert [(new, old) for old, new in pairwise(sample.answers)] == hops
        assert len(sample.answers) == 5


@pytest.mark.parametrize(("length", "common", "uncommon"), [(3500, 6, 1), (30_000, 30, 3)])
def test_ten_words_are_common(length: int, common: int, uncommon: int) -> None:
    [sample] = TASKS["cwe"].samples(1, length, 1, TOKENIZER, None)
    *_, text = sample.context.rpartition("\n\n")
    listed = re.findall(r"(\d+)\. (\S+)", text)
    assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
    counts = Counter(word for _, word in listed)
    assert {word for word in counts if counts[word] == common} == set(sample.answers)
    assert set(counts.values()) == {common, uncommon}
    assert len(sample.answers) == 10
    example = Counter(re.findall(r"\d+\. (\S+)", sample.context.removesuffix(text)))
    solved = [word for word, _ in example.most_common(10)]
    assert all(f"{word}," in sample.context or f"{word}." in sample.context for word in solved)
    assert not set(solved) & set(counts)


def test_three_coded_words_are_the_most_frequent() -> None:
    for length in (1000, 6000):
        for sample in samples("fwe", length=length):
            words = sample.context.split("\n\n", 1)[1].split()
            (dots, _), *ranked = Counter(words).most_common()
            assert dots == "..."
            assert tuple(word for word, _ in ranked[:3]) == sample.answers
            assert ranked[2][1] > ranked[3][1]


def test_no_name_holds_another() -> None:
    assert len(set(FIRST_WORDS)) == len(FIRST_WORDS) > 100
    assert len(set(SECOND_WORDS)) == len(SECOND_WORDS) > 100
    for word in FIRST_WORDS:
        assert not any(other.endswith(word) for other in FIRST_WORDS if other != word)
    for word in SECOND_WORDS:
        assert not any(other.startswith(word) for other in SECOND_WORDS if other != word)


@pytest.mark.parametrize("name", ["haystack.txt", "haystack/one.txt"])
def test_a_text_of_the_users_is_the_filler_and_repeats(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ruler" / name
    path.parent.mkdir(parents=True)
    path.write_text("Gulls cried. The tide went out.")
    [sample] = TASKS["niah_single_2"].samples(1, 1000, 1, TOKENIZER, tmp_path)
    assert sample.context.count("Gulls cried.") > 10
    assert num_tokens(sample) > 980


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ruler").mkdir()
    (tmp_path / "ruler" / "haystack.txt").write_text(" ")
    with pytest.raises(SamplesError, match="has no text"):
        TASKS["niah_single_2"].samples(1, 1000, 1, TOKENIZER, tmp_path)


def squad(folder: Path) -> None:
    paragraphs = [
        {
            "context": f"Paragraph about town {i}. Its mayor is Mayor{i}.",
            "qas": [
                {
                    "id": f"q{i}",
                    "question": f"Who is the mayor of town {i}?",
                    "answers": [{"text": f"Mayor{i}", "answer_start": 36}] * 2,
                    "is_impossible": False,
                },
                {"id": f"none{i}", "question": "?", "answers": [], "is_impossible": True},
            ],
        }
        for i in range(20)
    ]
    document = {"version": "v2.0", "data": [{"title": "Towns", "paragraphs": paragraphs}]}
    (folder / "dev-v2.0.json").write_text(json.dumps(document))


def hotpotqa(folder: Path) -> None:
    questions = [
        {
            "_id": f"h{i}",
            "question": f"Who rules the country of town {i}?",
            "answer": f"King{i}",
            "supporting_facts": [[f"Town {i}", 0], [f"Country {i}", 0]],
            "context": [
                [f"Town {i}", [f"Town {i} lies in country {i}.", " It is old."]],
                [f"Country {i}", [f"Its king is King{i}."]],
            ],
            "type": "bridge",
            "level": "hard",
        }
        for i in range(12)
    ]
    (folder / "hotpot_dev_distractor_v1.json").write_text(json.dumps(questions))


@pytest.mark.parametrize(("kind", "num_own"), [("qa_1", 1), ("qa_2", 2)])
def test_documents_surround_the_questions_own(tmp_path: Path, kind: str, num_own: int) -> None:
    (tmp_path / "ruler").mkdir()
    squad(tmp_path / "ruler")
    hotpotqa(tmp_path / "ruler")
    found = list(TASKS[kind].samples(5, 700, 1, TOKENIZER, tmp_path))
    assert len({sample.id for sample in found}) == 5
    for sample in found:
        assert 500 < num_tokens(sample) <= 700
        documents = re.split(r"\n\nDocument \d+:\n", sample.context)[1:]
        number = re.search(r"town (\d+)\?", sample.question)
        assert number is not None
        own = [i for i, text in enumerate(documents) if re.search(rf"\b{number[1]}\b", text)]
        assert len(own) == num_own < len(documents) == len(set(documents))
        assert METRICS[TASKS[kind].metric](sample, f"I think {sample.answers[0]}") == 1
        if kind == "qa_1":
            assert sample.depth == pytest.approx(own[0] / (len(documents) - 1), abs=0.1)


def test_where_all_documents_fit_all_are_there(tmp_path: Path) -> None:
    squad(tmp_path)
    [sample] = TASKS["qa_1"].samples(1, 10_000, 1, TOKENIZER, tmp_path)
    assert sample.context.count("Document ") == 20


def test_missing_questions_are_named(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match=r"'ruler/qa_1' has no data: .*ruler/squad\.json"):
        TASKS["qa_1"].samples(1, 1000, 1, TOKENIZER, tmp_path)
    with pytest.raises(SamplesError, match=r"the folder that has ruler/hotpotqa\.json with --data"):
        TASKS["qa_2"].samples(1, 1000, 1, TOKENIZER, None)


@given(
    steps=st.lists(st.integers(0, 9), min_size=1, max_size=300),
    limit=st.integers(0, 1500),
    max_size=st.none() | st.integers(0, 299),
)
def test_the_largest_fit_is_that_of_a_plain_search(
    steps: list[int], limit: int, max_size: int | None
) -> None:
    def measure(size: int) -> int:
        return 5 + sum(steps[:size]) + 10 * max(0, size - len(steps))

    # Beyond the steps a size is at least ten more.
    sizes = range(1 + (len(steps) + limit if max_size is None else max_size))
    fitting = [size for size in sizes if measure(size) <= limit]
    assert largest_fit(measure, limit, max_size) == (max(fitting) if fitting else None)


def test_the_largest_fit_is_exact_at_every_limit() -> None:
    assert [largest_fit(lambda size: size, limit) for limit in range(300)] == list(range(300))

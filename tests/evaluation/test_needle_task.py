# SPDX-License-Identifier: Apache-2.0
"""The needle model's tasks as samples."""

import pytest
from transformers import AutoTokenizer

from headkv_vllm.errors import SettingsError
from headkv_vllm.evaluation.metrics import METRICS
from headkv_vllm.evaluation.samples import Tokenizer
from headkv_vllm.evaluation.tasks.needle import NEEDLE_TASKS, NeedleTask
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import TASKS, generate_samples
from tests.scoring.small_models import small_tokenizer

EACH = pytest.mark.parametrize("task", NEEDLE_TASKS, ids=lambda task: task.kind)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(checkpoint_path())


def test_every_kind_of_prompt_is_a_task() -> None:
    assert [task.name for task in NEEDLE_TASKS] == [f"needle/{kind}" for kind in TASKS]


@EACH
def test_prompts_are_those_of_the_generator(task: NeedleTask, tokenizer: Tokenizer) -> None:
    samples = list(task.samples(4, 256, 5, tokenizer))
    drawn = list(generate_samples(task.kind, 256, 4, 5))
    assert [sample.prompt for sample in samples] == [d.prompt for d in drawn]
    assert [sample.answers for sample in samples] == [(d.answer,) for d in drawn]
    assert len({sample.id for sample in samples}) == 4


@EACH
def test_lengths_are_exact_and_the_parts_add_up(task: NeedleTask, tokenizer: Tokenizer) -> None:
    for sample in task.samples(3, 200, 5, tokenizer):
        context = tokenizer.encode(sample.context)
        question = tokenizer.encode(sample.question, add_special_tokens=False)
        assert sample.length == len(context) + len(question) == 200
        assert tokenizer.encode(sample.prompt) == context + question
        answer = tokenizer.encode(sample.answers[0], add_special_tokens=False)
        assert len(answer) < sample.max_new_tokens


@EACH
def test_the_answer_is_right_and_half_of_it_is_not(task: NeedleTask, tokenizer: Tokenizer) -> None:
    for sample in task.samples(3, 256, 5, tokenizer):
        assert METRICS[task.metric](sample, sample.answers[0]) == 1
        words = sample.answers[0].split()
        assert METRICS[task.metric](sample, " ".join(words[: len(words) // 2])) < 1


@EACH
def test_the_seed_decides(task: NeedleTask, tokenizer: Tokenizer) -> None:
    first, again, other = (list(task.samples(3, 128, seed, tokenizer)) for seed in (1, 1, 2))
    assert first == again
    assert not {sample.context for sample in first} & {sample.context for sample in other}
    assert list(task.samples(2, 128, 1, tokenizer)) == first[:2]


def test_the_depth_is_where_the_only_needle_stands(tokenizer: Tokenizer) -> None:
    [single] = [task for task in NEEDLE_TASKS if task.kind == "single"]
    for sample in single.samples(8, 400, 3, tokenizer):
        assert sample.depth is not None
        key = sample.answers[0].split()[0]
        # One more than the word's place: the BOS token is in front.
        assert sample.depth * 400 == pytest.approx(sample.context.split().index(key) + 1)


def test_several_needles_have_no_depth(tokenizer: Tokenizer) -> None:
    [task] = [task for task in NEEDLE_TASKS if task.kind == "multi-query"]
    assert [sample.depth for sample in task.samples(2, 256, 3, tokenizer)] == [None, None]


def test_bad_input_is_named_before_the_first_sample(tokenizer: Tokenizer) -> None:
    task = NEEDLE_TASKS[0]
    with pytest.raises(SettingsError, match="tokens is 10, allowed are 48 to 8000"):
        task.samples(1, 10, 1, tokenizer)
    with pytest.raises(SettingsError, match="is for the needle model's tokenizer only"):
        task.samples(1, 128, 1, small_tokenizer())

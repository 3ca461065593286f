# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_vllm.errors import SettingsError
from headkv_vllm.needle.tasks import (
    KEYS_ASKED,
    MAX_TOKENS,
    MIN_TOKENS,
    MULTI_VALUES,
    TASKS,
    generate_samples,
)
from headkv_vllm.needle.vocabulary import BOS, build_tokenizer

TOKENIZER = build_tokenizer(8192)
NUM_ASKED = {task: KEYS_ASKED if task == "multi-query" else 1 for task in TASKS}


def draw(task, tokens, seed, n=1):
    return list(generate_samples(task, tokens, n, seed))


@settings(deadline=None)
@given(
    task=st.sampled_from(TASKS),
    tokens=st.integers(MIN_TOKENS, 3000) | st.sampled_from([MIN_TOKENS, MAX_TOKENS]),
    seed=st.integers(0, 2**32),
)
def test_a_prompt_has_the_asked_length_and_holds_its_answer(task, tokens, seed):
    (sample,) = draw(task, tokens, seed)
    assert len(TOKENIZER(sample.prompt).input_ids) == sample.num_tokens == tokens

    words = [BOS, *sample.prompt.split()]
    assert words[-len(sample.keys) - 2 :] == ["?", *sample.keys, ":"]
    needles = [words[start:end] for start, end in sample.spans]
    if task == "two-hop":
        pointer, target = needles
        assert pointer == [sample.keys[0], target[0], ";"]
        needles = [[sample.keys[0], *target]]
    if task == "reasoning":
        fact, right = needles
        ((start, end),) = sample.distractors
        wrong = words[start:end]
        assert fact == [sample.keys[0], "near", right[1], ";"]
        assert wrong[0] == right[0] and wrong[1] != right[1] and len(wrong) == len(right)
        assert set(wrong[2:-1]).isdisjoint(right[2:-1])
        needles = [right]
    else:
        assert sample.distractors == ()
    assert [needle[0] for needle in needles] == list(sample.keys)
    assert sample.answer.split() == [word for needle in needles for word in needle]
    assert len(sample.keys) == NUM_ASKED[task]


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides_the_prompts_and_their_number_does_not(task):
    assert draw(task, 256, 5, n=4)[:2] == draw(task, 256, 5, n=2)
    assert draw(task, 256, 5, n=4) != draw(task, 256, 6, n=4)
    assert len({sample.prompt for sample in draw(task, 256, 5, n=20)}) == 20


def test_the_standard_case_has_24_needles_of_five_values():
    (sample,) = draw("multi-key", 1024, 0)
    assert len(needles_of_values(sample)) == 24


def needles_of_values(sample):
    entries = [part.split() for part in sample.prompt.split(" ;")]
    return [entry for entry in entries[:-1] if all("-" in word for word in entry[-5:])]


def test_a_single_needle_stands_alone():
    (sample,) = draw("single", 1024, 0)
    assert len(needles_of_values(sample)) == 1 and sample.prompt.split().count(";") == 1


def test_an_answer_of_many_values_has_ten():
    (sample,) = draw("multi-value", 1024, 0)
    assert len(sample.answer.split()) == 1 + MULTI_VALUES + 1


def test_other_keys_are_disputed_too():
    """Else the one fact in the prompt would be enough, whoever is asked for."""
    (sample,) = draw("reasoning", 1024, 0)
    assert sample.prompt.split().count("near") == 3
    assert len(needles_of_values(sample)) == 24


@pytest.mark.parametrize(
    ("task", "tokens", "n", "seed", "named"),
    [
        ("triple", 1024, 1, 0, "task is 'triple', allowed are single, multi-key, multi-value"),
        ("single", MIN_TOKENS - 1, 1, 0, f"tokens is {MIN_TOKENS - 1}, allowed are 48 to 8000"),
        ("single", MAX_TOKENS + 1, 1, 0, f"tokens is {MAX_TOKENS + 1}, allowed are 48 to 8000"),
        ("single", 1024, -1, 0, "n is -1"),
        ("single", 1024, 1, -2, "seed is -2"),
    ],
)
def test_bad_values_are_named(task, tokens, n, seed, named):
    with pytest.raises(SettingsError, match=named) as caught:
        generate_samples(task, tokens, n, seed)
    assert "\n" not in str(caught.value)

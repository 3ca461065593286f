# SPDX-License-Identifier: Apache-2.0
"""The needle tasks as samples for `headkv score`."""

import json
from dataclasses import asdict

import pytest

from headkv_vllm.errors import SettingsError
from headkv_vllm.needle.tasks import TASKS, TEMPLATE, generate_samples, score_sample, score_samples
from headkv_vllm.scoring.prompts import Template
from headkv_vllm.scoring.samples import read_samples


@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_is_the_tasks_prompt(task):
    for sample in generate_samples(task, 256, 5, 0):
        converted = score_sample(sample)
        text, start = Template(TEMPLATE).fill(converted)
        assert (text, start) == (sample.prompt, 0)
        assert converted.answer == sample.answer


@pytest.mark.parametrize("task", TASKS)
def test_the_evidence_is_the_needles(task):
    for sample in generate_samples(task, 256, 5, 0):
        words = ["<bos>", *sample.prompt.split()]
        needles = sorted(" ".join(words[start:end]) for start, end in sample.spans)
        converted = score_sample(sample)
        assert sorted(converted.context[start:end] for start, end in converted.evidence) == needles


def test_samples_survive_their_file(tmp_path):
    samples = list(score_samples([64, 128], 2, 5))
    assert len(samples) == 2 * 2 * len(TASKS)
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(f"{json.dumps(asdict(sample))}\n" for sample in samples))
    assert list(read_samples(path)) == samples


def test_bad_lengths_are_refused():
    with pytest.raises(SettingsError, match="tokens is 5"):
        list(score_samples([5], 1, 0))

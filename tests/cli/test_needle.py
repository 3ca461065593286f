# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from typer.testing import CliRunner

from headkv_vllm.cli.needle import needle_app
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import TASKS, generate_samples


def invoke(*arguments):
    return CliRunner().invoke(needle_app, arguments)


def test_path_is_the_checkpoint():
    result = invoke("path")
    assert result.exit_code == 0 and result.output.strip() == str(checkpoint_path())


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_the_generated_samples_as_json_lines(task):
    result = invoke("prompts", "--task", task, "--tokens", "128", "--n", "3", "--seed", "5")
    lines = [json.loads(line) for line in result.output.splitlines()]
    expected = list(generate_samples(task, 128, 3, 5))
    assert result.exit_code == 0
    assert lines == [{"prompt": s.prompt, "answer": s.answer} for s in expected]
    assert all(len(line["prompt"].split()) == 127 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--task", "triple"), "'triple'"),
        (("--tokens", "9"), "tokens is 9"),
        (("--n", "-1"), "n is -1"),
        (("--n", "many"), "'--n'"),
    ],
)
def test_bad_values_end_with_2_and_name_the_value(arguments, named):
    result = invoke("prompts", *arguments)
    assert result.exit_code == 2 and named in result.output

# SPDX-License-Identifier: Apache-2.0
"""`headkv score` on a real language model, and what its bundled file says."""

import json
import subprocess

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from headkv_vllm.cli.main import app
from headkv_vllm.head_scores.file import read_score_file
from headkv_vllm.head_scores.identity import identify_checkpoint
from headkv_vllm.head_scores.library import find_bundled
from headkv_vllm.head_scores.scores import fold_query_heads
from headkv_vllm.resources import scores_dir
from tests.real_model import SCRIPT, find_real_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHIPPED = scores_dir() / "smollm2-135m-instruct.json"


@pytest.fixture(scope="module")
def model():
    return find_real_model()


def test_the_script_only_names_the_folder_that_is_there(model):
    again = subprocess.run([SCRIPT], capture_output=True, text=True, check=True, timeout=20)
    assert (again.stdout, again.stderr) == (f"{model}\n", "")
    wrong = subprocess.run([SCRIPT, "--folder", "x"], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr == "real-model: error: unknown argument: --folder x; allowed are none\n"


def test_the_checkpoint_is_the_published_model(model):
    config = AutoConfig.from_pretrained(model)
    sizes = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    assert sizes == (30, 9, 3) and str(config.dtype) == "torch.bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.model_max_length == 8192
    end = GenerationConfig.from_pretrained(model).eos_token_id
    assert tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"
    # Digits are cut off first: the empty line before one is a token of its own.
    assert tokenizer.tokenize("in\n\n42") == ["in", "ĊĊ", "4", "2"]
    chat = [{"role": "user", "content": "Hi"}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert find_bundled(identify_checkpoint(model)) == SHIPPED


def test_a_few_samples_name_the_heads_of_the_bundled_file(model, tmp_path):
    out = tmp_path / "scores.json"
    options = ["--samples", "3", "--lengths", "384", "--seed", "5"]
    done = CliRunner().invoke(app, ["score", str(model), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    made, shipped = read_score_file(out), read_score_file(SHIPPED)
    assert made.provenance.chat and made.provenance.answers == "forced"
    assert made.provenance.num_accepted == 3
    ours, theirs = (fold_query_heads(file.values, 3, "mean").ravel() for file in (made, shipped))
    assert ours.argmax() == theirs.argmax()
    best = [set(np.argsort(-values)[:10]) for values in (ours, theirs)]
    assert len(best[0] & best[1]) >= 6


def test_the_bundled_file_says_how_it_was_made():
    provenance = json.loads(SHIPPED.read_text())["provenance"]
    assert provenance["num_accepted"] >= provenance["num_samples"] / 2
    assert provenance["chat"] and provenance["answers"] == "forced"
    assert "Apache-2.0" in provenance["notes"]

# SPDX-License-Identifier: Apache-2.0
"""Samples in tokens: plain text, chats, and where the question begins."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_vllm.errors import ModelError
from headkv_vllm.evaluation.prompts import PromptFormat, read_prompts, write_prompts
from headkv_vllm.evaluation.samples import Sample
from tests.scoring.small_models import small_tokenizer

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXTS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


class Pairs:
    """A tokenizer whose tokens are pairs of characters, after a first one that is always 1."""

    chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        pairs = [text[i : i + 2].encode("utf-32-le") for i in range(0, len(text), 2)]
        return [1, *(2 + int.from_bytes(pair, "little") for pair in pairs)]


def chat_format() -> PromptFormat:
    """A token is a byte, and BOS is the chat template's own."""
    tokenizer = small_tokenizer()
    tokenizer.chat_template = CHAT
    return PromptFormat(tokenizer, chat=True)


def sample(context: str = "context", question: str = " Why?", prefix: str = "") -> Sample:
    return Sample("0", "a task", context, question, ("answer",), 8, 0, answer_prefix=prefix)


@given(context=TEXTS, question=TEXTS, prefix=TEXTS)
def test_the_context_holds_none_of_the_question(context: str, question: str, prefix: str) -> None:
    prompt = PromptFormat(Pairs()).prompt(sample(context, question, prefix))
    assert list(prompt.ids) == Pairs().encode(context + question + prefix)
    assert (*prompt.context, *prompt.question) == prompt.ids
    alone = Pairs().encode(context)
    assert list(prompt.context) == alone[: prompt.num_context]
    assert len(alone) - prompt.num_context <= 1


@given(context=TEXTS, question=TEXTS, prefix=st.sampled_from(["", " It is"]))
def test_a_chat_asks_as_the_user_and_begins_the_assistants_answer(
    context: str, question: str, prefix: str
) -> None:
    form = chat_format()
    prompt = form.prompt(sample(f"\n{context}", question, prefix))
    shown = form.tokenizer.decode(list(prompt.ids))
    assert shown == f"<s><user>{context}{question}\n<assistant>{prefix.strip()}"
    before = form.tokenizer.decode(list(prompt.context))
    assert before.startswith(f"<s><user>{context}") and len(before) - len(f"<s><user>{context}") < 2


def test_the_templates_tokens_are_counted() -> None:
    form = chat_format()
    for prefix in ("", " It is"):
        asked = sample(prefix=prefix)
        text = form.tokenizer.encode(asked.prompt, add_special_tokens=False)
        more = len(form.prompt(asked).ids) - len(text)
        assert more <= form.num_template_tokens <= more + 3
    assert PromptFormat(Pairs()).num_template_tokens == 0


def test_prompts_are_written_for_others(tmp_path: Path) -> None:
    prompts = [chat_format().prompt(sample(text)) for text in ("one", "two\u2028lines")]
    write_prompts(prompts, tmp_path)
    assert read_prompts(tmp_path) == prompts


def test_an_answer_may_be_shorter_than_its_task_lets_it() -> None:
    for most, expected in ((4, 4), (8, 8), (100, 8), (None, 8)):
        prompt = PromptFormat(Pairs(), max_tokens=most).prompt(sample())
        assert prompt.sample.max_new_tokens == expected


def test_without_a_template_there_is_no_chat() -> None:
    PromptFormat(small_tokenizer()).check("m")
    with pytest.raises(ModelError, match="'m' has no chat template, which --chat needs"):
        PromptFormat(small_tokenizer(), chat=True).check("m")

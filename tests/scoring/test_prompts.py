# SPDX-License-Identifier: Apache-2.0
"""Prompts in tokens: where the evidence is, for tokenizers of several kinds."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, PythonBackend

from headkv_vllm.errors import SamplesError, UnsupportedError
from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.tasks import TEMPLATE, score_samples
from headkv_vllm.scoring.haystack import GeneratedHaystack
from headkv_vllm.scoring.prompts import (
    DEFAULT_TEMPLATE,
    PromptTokens,
    Template,
    template_length,
    tokenize,
)
from headkv_vllm.scoring.samples import ScoreSample, merge

BOS, END = "<s>", "<|end|>"
CHAT = "{{ bos_token }}<|user|>{{ messages[0]['content'] | trim }}<|end|>\n<|bot|>"
SAMPLE = ScoreSample(
    "The cat sat. A dog ran home.", "What did the dog do?", "ran home", ((13, 28),)
)
SENTENCES = list(islice(GeneratedHaystack().sentences(np.random.default_rng(0)), 200))
VOCABULARY = sorted({word for s in (SAMPLE.context, SAMPLE.question) for word in s.split()})


def wrap(tokenizer: Tokenizer, *, bos: bool, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([BOS, END])
    if bos:
        first = tokenizer.token_to_id(BOS)
        added = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, first)])
        before = [tokenizer.post_processor] if tokenizer.post_processor else []
        tokenizer.post_processor = processors.Sequence([*before, added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, chat_template=chat
    )


def word_level(*, bos: bool, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    known = ["<unk>", *VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = wrap(tokenizer, bos=bos, chat=chat)
    wrapped.unk_token = "<unk>"
    return wrapped


def byte_level(*, bos: bool, trim: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer, bos=bos)


def metaspace(*, bos: bool) -> PreTrainedTokenizerFast:
    """Puts a mark before the first word, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer, bos=bos)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "words": cache(lambda: word_level(bos=False)),
    "words, BOS": cache(lambda: word_level(bos=True)),
    "bytes": cache(lambda: byte_level(bos=False)),
    "bytes, BOS": cache(lambda: byte_level(bos=True)),
    "bytes, offsets with the space": cache(lambda: byte_level(bos=True, trim=False)),
    "metaspace, BOS": cache(lambda: metaspace(bos=True)),
}
LOSSLESS = [name for name in TOKENIZERS if "words" not in name]


def said(tokenizer: PreTrainedTokenizerFast, prompt: PromptTokens) -> str:
    return tokenizer.decode([prompt.ids[position] for position in prompt.evidence]).strip()


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_evidence_tokens_read_as_the_evidence(name: str, chat: bool) -> None:
    tokenizer = TOKENIZERS[name]()
    prompt = tokenize(SAMPLE, tokenizer, Template(chat=chat))
    assert said(tokenizer, prompt) == "A dog ran home."
    assert tokenizer.decode(prompt.answer_ids).strip() in ("ran home", "ran <unk>")
    assert prompt.evidence == tuple(range(prompt.evidence[0], prompt.evidence[-1] + 1))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_prompt_is_what_the_tokenizer_makes_of_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    text = DEFAULT_TEMPLATE.replace("{context}", SAMPLE.context)
    text = text.replace("{question}", SAMPLE.question)
    assert list(tokenize(SAMPLE, tokenizer, Template()).ids) == tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert list(tokenize(SAMPLE, tokenizer, Template(chat=True)).ids) == ids


ROLES = "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [A]"
ANSWERED = {
    "at once": ("{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}", "ran home"),
    "after a space": ("{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}", " ran home"),
    "after a thought": ("{% else %}(none){{ m.content }}{% endif %}{% endfor %}", "ran home"),
    "nowhere": ("{% endif %}{% endfor %}", "ran home"),
}


@pytest.mark.parametrize(("rest", "text"), ANSWERED.values(), ids=ANSWERED.keys())
def test_an_answer_follows_a_chat_as_the_template_has_it(rest: str, text: str) -> None:
    tokenizer = byte_level(bos=False)
    tokenizer.chat_template = ROLES + rest
    prompt = tokenize(SAMPLE, tokenizer, Template(chat=True))
    assert tokenizer.decode(prompt.answer_ids) == text
    assert tokenizer.decode(prompt.ids).endswith("[A]")


def test_the_chat_template_is_used_where_there_is_one_unless_told() -> None:
    with_one, without = byte_level(bos=False), word_level(bos=False, chat=None)
    for chat, expected in ((None, (True, False)), (True, (True, True)), (False, (False, False))):
        template = Template(chat=chat)
        assert (template.settled(with_one).chat, template.settled(without).chat) == expected
    assert tokenize(SAMPLE, with_one, Template(chat=None)) == tokenize(
        SAMPLE, with_one, Template(chat=True)
    )


def test_a_sample_may_have_no_evidence() -> None:
    prompt = tokenize(replace(SAMPLE, evidence=()), TOKENIZERS["bytes"](), Template(chat=True))
    assert prompt.evidence == () and prompt.answer_ids


@pytest.mark.parametrize("name", ["words, BOS", "bytes, BOS", "metaspace, BOS"])
def test_bos_is_no_evidence_though_the_evidence_starts_the_prompt(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    sample = ScoreSample("A dog", "ran home.", "dog", ((0, 5),))
    prompt = tokenize(sample, tokenizer, Template("{context} {question}"))
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert prompt.evidence[0] == 1 and said(tokenizer, prompt) == "A dog"


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tokens_are_evidence_that_touch_a_span(name: str, data: st.DataObject) -> None:
    """Compared with a plain double loop over tokens and characters."""
    tokenizer = TOKENIZERS[name]()
    context = data.draw(st.text("abcde \n.é東{}", min_size=3, max_size=60)) + " end"
    bounds = st.integers(0, len(context) - 1)
    drawn = data.draw(st.lists(st.tuples(bounds, st.integers(1, 12)), min_size=1, max_size=3))
    spans = merge((start, min(start + size, len(context))) for start, size in drawn)
    sample = ScoreSample(context, "end?", "end", (*spans,))
    try:
        prompt = tokenize(sample, tokenizer, Template("x {context}\n{question}"))
    except SamplesError:
        assert all(not context[start:end].strip() for start, end in spans)
        return
    encoding = tokenizer(f"x {context}\nend?", return_offsets_mapping=True)
    inside = {2 + c for start, end in spans for c in range(start, end)}
    expected = [
        position
        for position, (start, end) in enumerate(encoding["offset_mapping"])
        if inside & set(range(start, end))
    ]
    assert list(prompt.evidence) == expected


def test_special_tokens_in_the_text_are_no_evidence_but_unknown_words_are() -> None:
    tokenizer = TOKENIZERS["words, BOS"]()
    sample = ScoreSample("cat <s> zebra A", "What", "zebra", ((0, 15),))
    prompt = tokenize(sample, tokenizer, Template("{context} {question}"))
    assert [tokenizer.convert_ids_to_tokens(prompt.ids[p]) for p in prompt.evidence] == [
        "cat",
        "<unk>",
        "A",
    ]


def test_a_chat_template_may_strip_the_message() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    sample = ScoreSample("  A dog ran.", "Who? ", "dog", ((0, 7),))
    prompt = tokenize(sample, tokenizer, Template(" {context} {question}\n", chat=True))
    assert said(tokenizer, prompt) == "A dog"


def test_braces_of_the_user_are_text() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    sample = ScoreSample("a {question} {0} {x", "{context}?", "{0}", ((13, 16),))
    prompt = tokenize(sample, tokenizer, Template("{} {context} {question} {y}"))
    assert tokenizer.decode(prompt.ids) == "{} a {question} {0} {x {context}? {y}"
    assert said(tokenizer, prompt) == "{0}"


@pytest.mark.parametrize(
    "text",
    ["", "{context}", "{question}", "{question} {context}", "{context} {question} {context}"],
)
def test_a_template_without_both_placeholders_is_refused(text: str) -> None:
    with pytest.raises(SamplesError, match=r"the template is .*expected a text with \{context\}"):
        Template(text)


CHAT_ERRORS = {
    "none": (None, UnsupportedError, "Tokenizer.* has no chat template"),
    "upper case": (
        "{{ messages[0].content | upper }}",
        SamplesError,
        "does not contain the message",
    ),
    "twice": ("{{ messages[0].content * 2 }}", SamplesError, "repeats the message"),
    "refusing": ("{{ raise_exception('no users') }}", UnsupportedError, "no users"),
    "broken": ("{{ messages[0]", UnsupportedError, "refuses a user's message"),
}


@pytest.mark.parametrize(("chat", "error", "reason"), CHAT_ERRORS.values(), ids=CHAT_ERRORS.keys())
def test_a_chat_template_that_cannot_be_used_is_named(
    chat: str | None, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason) as caught:
        tokenize(SAMPLE, word_level(bos=True, chat=chat), Template(chat=True))
    assert "\n" not in str(caught.value)


def test_a_slow_tokenizer_is_refused() -> None:
    class SlowTokenizer(PythonBackend):
        vocab_size = 1

        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(UnsupportedError, match="SlowTokenizer does not give the places of tokens"):
        tokenize(SAMPLE, SlowTokenizer(), Template())
    with pytest.raises(UnsupportedError, match="SlowTokenizer does not give the places of tokens"):
        template_length(SlowTokenizer(), Template())


def test_a_model_that_thinks_is_told_not_to() -> None:
    thinking = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    tokenizer = word_level(bos=False, chat=CHAT + thinking)
    prompt = tokenize(SAMPLE, tokenizer, Template(chat=True))
    assert "<think>" not in tokenizer.decode(prompt.ids)


def test_evidence_or_an_answer_without_tokens_is_refused() -> None:
    tokenizer = TOKENIZERS["words"]()
    blank = ScoreSample("a  b", "q", "b", ((1, 2),))
    with pytest.raises(SamplesError, match="the evidence ' ' has no tokens"):
        tokenize(blank, tokenizer, Template())
    with pytest.raises(SamplesError, match="the answer ' ' has no tokens"):
        tokenize(ScoreSample("a  b", "q", "  ", ((0, 1),)), tokenizer, Template())


def test_the_needle_model_reads_its_own_needles() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    template = Template(TEMPLATE)
    for sample in score_samples([64, 300], per_task=3, seed=0):
        prompt = tokenize(sample, tokenizer, template)
        assert len(prompt.ids) in (64, 300) and prompt.ids[0] == tokenizer.bos_token_id
        spans = [sample.context[start:end] for start, end in sample.evidence]
        assert said(tokenizer, prompt) == " ".join(spans)
        assert tokenizer.decode(prompt.answer_ids) == sample.answer

# SPDX-License-Identifier: Apache-2.0
"""A sample as the tokens that a model is given, with the positions of the evidence."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Final, Self

from transformers import PreTrainedTokenizerBase

from headkv_vllm.errors import SamplesError, UnsupportedError, shown
from headkv_vllm.scoring.samples import Sample, Span

CONTEXT: Final = "{context}"
QUESTION: Final = "{question}"
DEFAULT_TEMPLATE: Final = (
    f"{CONTEXT}\n\nAnswer with a phrase from the text above, and with nothing else.\n"
    f"Question: {QUESTION}\nAnswer:"
)


@dataclass(frozen=True)
class PromptTokens:
    """A prompt, and what is expected of it.

    ids: the whole prompt, special tokens included.
    evidence: positions in `ids`, ascending, of the tokens that share a character with the
        evidence; none where the sample has no evidence. Never a special token: the HeadKV authors'
        code looks for a window of tokens like the statement's, and can take a BOS in.
    answer_ids: the expected answer without special tokens.
    """

    ids: tuple[int, ...]
    evidence: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Template:
    """How a sample becomes a text: `{context}`, later `{question}`, each once, other braces as is.

    chat: the text is wrapped as a user's message by the tokenizer's chat template; None: if it has
    one. Raises SamplesError for another text.
    """

    text: str = DEFAULT_TEMPLATE
    chat: bool | None = False

    def __post_init__(self) -> None:
        counts = [self.text.count(CONTEXT), self.text.count(QUESTION)]
        if counts != [1, 1] or self.text.index(CONTEXT) > self.text.index(QUESTION):
            raise SamplesError(
                f"the template is {shown(self.text)}, allowed is a text with {CONTEXT} once and "
                f"{QUESTION} once after it"
            )

    def settled(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The same, with `chat` true or false."""
        chat = bool(tokenizer.chat_template) if self.chat is None else self.chat
        return replace(self, chat=chat)

    def fill(self, sample: Sample) -> tuple[str, int]:
        """The text of `sample`, and the character at which its context starts."""
        before, rest = self.text.split(CONTEXT)
        between, after = rest.split(QUESTION)
        text = f"{before}{sample.context}{between}{sample.question}{after}"
        return text, len(before)


def template_length(tokenizer: PreTrainedTokenizerBase, template: Template) -> int:
    """Tokens of a prompt besides context and question. Raises UnsupportedError, see `tokenize`."""
    text, _ = template.fill(Sample("", "", "", ()))
    template = template.settled(tokenizer)
    if template.chat:
        text = _render(text, tokenizer)
    return len(_encode(text, tokenizer, add_special_tokens=not template.chat)[0])


def tokenize(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, template: Template
) -> PromptTokens:
    """`sample` in the tokens of `tokenizer`, with its special tokens, or its chat template's.

    The answer is tokenized as it would follow the prompt: after a space, or after what the chat
    template puts before it. Raises UnsupportedError when the tokenizer is not a fast one, or has no
    chat template that can be used, and SamplesError when the chat template changes the text, or
    evidence or answer has no token.
    """
    template = template.settled(tokenizer)
    text, context = template.fill(sample)
    spans = [(context + start, context + end) for start, end in sample.evidence]
    answer = f" {sample.answer}"
    if template.chat:
        answer = _chat_answer(text, sample.answer, tokenizer)
        text, spans = _chat(text, spans, tokenizer)
    ids, offsets = _encode(text, tokenizer, add_special_tokens=not template.chat)
    evidence = _overlapping(offsets, spans)
    special = _special_ids(tokenizer)
    return _check(
        sample,
        PromptTokens(
            ids=ids,
            evidence=tuple(position for position in evidence if ids[position] not in special),
            answer_ids=_encode(answer, tokenizer, add_special_tokens=False)[0],
        ),
    )


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> tuple[tuple[int, ...], list[Span]]:
    if not tokenizer.is_fast:
        raise UnsupportedError(
            f"{type(tokenizer).__name__} does not say where tokens stand in the text: a fast "
            "tokenizer (tokenizer.json) is needed"
        )
    encoding = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        verbose=False,
    )
    return tuple(encoding["input_ids"]), encoding["offset_mapping"]


def _chat(
    text: str, spans: list[Span], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[Span]]:
    """The chat with `text` as its only message, and where `spans` of `text` are in it."""
    rendered = _render(text, tokenizer)
    # Many chat templates strip a message.
    stripped = text.strip()
    place = rendered.find(stripped)
    if place < 0 or place != rendered.rfind(stripped):
        count = "not" if place < 0 else "more than once"
        raise SamplesError(
            f"the chat template of {type(tokenizer).__name__} has the message {count} in its text, "
            "so the evidence cannot be found: --no-chat asks in plain text"
        )
    moved, last = place - text.index(stripped), place + len(stripped)
    kept = [(max(start + moved, place), min(end + moved, last)) for start, end in spans]
    return rendered, [(start, end) for start, end in kept if start < end]


def _chat_answer(text: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`answer` as it follows the chat with `text`: some templates put a space before it."""
    asked, answered = _render(text, tokenizer), _render(text, tokenizer, answer)
    start = answered.find(answer, len(asked))
    between = answered[len(asked) : start]
    follows = start >= 0 and answered.startswith(asked) and not between.strip()
    return between + answer if follows else answer


def _render(text: str, tokenizer: PreTrainedTokenizerBase, answer: str | None = None) -> str:
    """The chat with `text` as the user's message, up to where `answer` begins, or with it."""
    from jinja2 import TemplateError

    name = type(tokenizer).__name__
    if not tokenizer.chat_template:
        raise UnsupportedError(f"{name} has no chat template: --no-chat asks in plain text")
    messages = [{"role": "user", "content": text}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        rendered: str = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=answer is None,
            # Qwen3's and others' would let the model think aloud for longer than an answer is.
            enable_thinking=False,
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise UnsupportedError(
            f"the chat template of {name} refuses a user's message: {shown(str(error))}"
        ) from None
    return rendered


def _overlapping(offsets: list[Span], spans: list[Span]) -> list[int]:
    """Ascending positions whose characters overlap one of the ascending spans, which are apart.

    A token of no characters, such as BOS, overlaps none.
    """
    ends = [end for _, end in spans]
    # Of the spans that end after the token's start, the first starts first.
    after = [bisect_right(ends, first) for first, _ in offsets]
    return [
        position
        for position, ((first, end), span) in enumerate(zip(offsets, after, strict=True))
        if span < len(spans) and max(first, spans[span][0]) < end
    ]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All special tokens; the unknown one, which stands for text, only if it is also another."""
    structural = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return {
        token
        for token in tokenizer.all_special_ids
        if token != tokenizer.unk_token_id or token in structural
    }


def _check(sample: Sample, prompt: PromptTokens) -> PromptTokens:
    if sample.evidence and not prompt.evidence:
        start, end = sample.evidence[0]
        raise SamplesError(f"the evidence {shown(sample.context[start:end])} has no tokens")
    if not prompt.answer_ids:
        raise SamplesError(f"the answer {shown(sample.answer)} has no tokens")
    return prompt

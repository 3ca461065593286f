# SPDX-License-Identifier: Apache-2.0
"""Turns a sample into the tokens of a prompt, with the positions of the evidence."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Final, Self

from transformers import PreTrainedTokenizerBase

from headkv_vllm.errors import SamplesError, UnsupportedError, shown
from headkv_vllm.scoring.samples import ScoreSample, Span

CONTEXT: Final = "{context}"
QUESTION: Final = "{question}"
DEFAULT_TEMPLATE: Final = (
    f"{CONTEXT}\n\nAnswer with a phrase from the text above, and with nothing else.\n"
    f"Question: {QUESTION}\nAnswer:"
)


@dataclass(frozen=True)
class PromptTokens:
    """A prompt and its expected answer in tokens.

    ids: the whole prompt, special tokens included.
    evidence: ascending positions in `ids` of the tokens that share a character with the evidence;
        empty when the sample has no evidence. Special tokens are left out. (The HeadKV authors'
        code looks for a run of tokens like the statement's, which can include a BOS token.)
    answer_ids: the expected answer without special tokens.
    """

    ids: tuple[int, ...]
    evidence: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Template:
    """How a sample becomes a text. `text` has `{context}` once, and `{question}` once after it.

    chat: whether the tokenizer's chat template wraps the text as a user's message; None means
    yes if there is a chat template. Raises SamplesError for a text of another form.
    """

    text: str = DEFAULT_TEMPLATE
    chat: bool | None = False

    def __post_init__(self) -> None:
        counts = [self.text.count(CONTEXT), self.text.count(QUESTION)]
        if counts != [1, 1] or self.text.index(CONTEXT) > self.text.index(QUESTION):
            raise SamplesError(
                f"the template is {shown(self.text)}, expected a text with {CONTEXT} once and "
                f"{QUESTION} once after it"
            )

    def settled(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """This template with `chat` decided: true or false."""
        chat = bool(tokenizer.chat_template) if self.chat is None else self.chat
        return replace(self, chat=chat)

    def fill(self, sample: ScoreSample) -> tuple[str, int]:
        """The text of `sample`, and the index of the character at which its context starts."""
        before, rest = self.text.split(CONTEXT)
        between, after = rest.split(QUESTION)
        text = f"{before}{sample.context}{between}{sample.question}{after}"
        return text, len(before)


def template_length(tokenizer: PreTrainedTokenizerBase, template: Template) -> int:
    """The number of tokens that a prompt has besides context and question.

    Raises UnsupportedError, see `tokenize`.
    """
    text, _ = template.fill(ScoreSample("", "", "", ()))
    template = template.settled(tokenizer)
    if template.chat:
        text = _render(text, tokenizer)
    return len(_encode(text, tokenizer, add_special_tokens=not template.chat)[0])


def tokenize(
    sample: ScoreSample, tokenizer: PreTrainedTokenizerBase, template: Template
) -> PromptTokens:
    """`sample` in the tokens of `tokenizer`, with its special tokens or its chat template's.

    The answer is tokenized as it follows the prompt: after a space, or after the text that the chat
    template puts before it. Raises UnsupportedError when the tokenizer is not a fast one, or has no
    usable chat template. Raises SamplesError when the chat template changes the text, or when the
    evidence or the answer has no tokens.
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
            f"{type(tokenizer).__name__} does not give the places of tokens in the text: a fast "
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
    """The chat with `text` as its only message, and `spans` of `text` as spans of the chat."""
    rendered = _render(text, tokenizer)
    # Many chat templates strip a message.
    stripped = text.strip()
    place = rendered.find(stripped)
    if place < 0 or place != rendered.rfind(stripped):
        what = "does not contain the message" if place < 0 else "repeats the message"
        raise SamplesError(
            f"the chat template of {type(tokenizer).__name__} {what}, so the evidence cannot be "
            "found: --no-chat asks in plain text"
        )
    moved, last = place - text.index(stripped), place + len(stripped)
    kept = [(max(start + moved, place), min(end + moved, last)) for start, end in spans]
    return rendered, [(start, end) for start, end in kept if start < end]


def _chat_answer(text: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`answer` as it follows the chat with `text`. Some templates put a space before it."""
    asked, answered = _render(text, tokenizer), _render(text, tokenizer, answer)
    start = answered.find(answer, len(asked))
    between = answered[len(asked) : start]
    follows = start >= 0 and answered.startswith(asked) and not between.strip()
    return between + answer if follows else answer


def _render(text: str, tokenizer: PreTrainedTokenizerBase, answer: str | None = None) -> str:
    """The chat with `text` as the user's message, and with `answer` as its reply if given."""
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
            # Otherwise Qwen3 and other models write their thoughts before the answer.
            enable_thinking=False,
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise UnsupportedError(
            f"the chat template of {name} refuses a user's message: {shown(str(error))}"
        ) from None
    return rendered


def _overlapping(offsets: list[Span], spans: list[Span]) -> list[int]:
    """Ascending positions of the tokens that overlap one of the `spans`, which ascend.

    A token without characters, such as BOS, overlaps no span.
    """
    ends = [end for _, end in spans]
    # The index of the first span that ends after the token's start.
    after = [bisect_right(ends, first) for first, _ in offsets]
    return [
        position
        for position, ((first, end), span) in enumerate(zip(offsets, after, strict=True))
        if span < len(spans) and max(first, spans[span][0]) < end
    ]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All special tokens. The unknown token stands for text, so it counts only if it is also
    another special token."""
    structural = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return {
        token
        for token in tokenizer.all_special_ids
        if token != tokenizer.unk_token_id or token in structural
    }


def _check(sample: ScoreSample, prompt: PromptTokens) -> PromptTokens:
    if sample.evidence and not prompt.evidence:
        start, end = sample.evidence[0]
        raise SamplesError(f"the evidence {shown(sample.context[start:end])} has no tokens")
    if not prompt.answer_ids:
        raise SamplesError(f"the answer {shown(sample.answer)} has no tokens")
    return prompt

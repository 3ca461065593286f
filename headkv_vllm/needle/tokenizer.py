# SPDX-License-Identifier: Apache-2.0
"""The needle model's tokenizer: one word, one token; BOS in front; single spaces when decoded."""

from typing import Final

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from headkv_vllm.needle.vocabulary import BOS, EOS, PAD, TOKEN_IDS, UNK

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %} {{ message['content'] }}{% endfor %}"
)
"""The contents of all messages, one after the other; roles mean nothing to this model."""


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers and vLLM load it; `save_pretrained(folder)` writes it."""
    tokenizer = Tokenizer(WordLevel(dict(TOKEN_IDS), unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, TOKEN_IDS[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )

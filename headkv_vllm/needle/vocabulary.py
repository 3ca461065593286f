# SPDX-License-Identifier: Apache-2.0
"""The needle model's 448 words and its tokenizer. Each word is one token."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS: Final = "<bos>"
EOS: Final = "<eos>"
PAD: Final = "<pad>"
UNK: Final = "<unk>"
SPECIAL_WORDS: Final = (BOS, EOS, PAD, UNK)

END: Final = ";"
"""Ends a needle in the prompt and an entry of the answer."""
ASK: Final = "?"
"""Begins the question."""
REPLY: Final = ":"
"""Ends the question. The next token is the first token of the answer."""
FULL_STOP: Final = "."

_SCENERY: Final = tuple(
    """
    the a this that and but so then river mountain forest meadow harbour village window garden
    morning evening winter summer light shadow wind rain snow stone bridge road field cloud
    was is grew fell stood passed turned moved lay rose quiet slow old small tall bright
    under over near behind beyond across along before bench gate
    """.split()
)
NEAR: Final = "near"
"""Used in facts only: `key near place ;`."""
PLACES: Final = tuple(
    """
    river mountain forest meadow harbour village window garden stone bridge road field bench gate
    """.split()
)
"""Used in statements and facts only."""
FILLER: Final = tuple(word for word in _SCENERY if word not in (NEAR, *PLACES))
KEYS: Final = tuple(
    """
    adam agnes alan alice amir amy anna arthur astrid ben bella boris bruno carla carlos cecil
    chloe clara colin conor cora daisy dan david dennis diana dora edgar edith elena eli ella
    emil emma erik esther eva felix fiona flora frank freya gary george gina grace greta hannah
    harry hazel hector helen henry hugo ian ida igor ines irene isaac ivan jack jane jasper
    jean joel john jonas judith julia karen karl kate kevin kurt lara laura lena leo lily
    linda lisa louis lucas lucy luna marco maria martin maya mia milo mona nadia nathan nina
    noah nora olga oliver oscar otto paul peter petra philip pia quinn ralph rita robert rosa
    ruth sam sara simon sofia stella susan tessa theo thomas tina tom ursula victor vera walter
    """.split()
)
COLOURS: Final = tuple(
    """
    red blue green gold gray black white pink brown amber coral ivory lilac olive teal violet
    """.split()
)
VALUES: Final = tuple(f"{colour}-{number}" for colour in COLOURS for number in range(1, 17))

WORDS: Final = (*SPECIAL_WORDS, END, ASK, REPLY, FULL_STOP, *_SCENERY, *KEYS, *VALUES)
TOKEN_IDS: Final = {word: token_id for token_id, word in enumerate(WORDS)}
FILLER_IDS: Final = frozenset(TOKEN_IDS[word] for word in (*FILLER, FULL_STOP))
VALUE_IDS: Final = frozenset(TOKEN_IDS[word] for word in VALUES)


CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %} {{ message['content'] }}{% endfor %}"
)
"""The contents of all messages, one after the other. This model has no roles."""


def build_tokenizer(max_length: int) -> "PreTrainedTokenizerFast":
    """The tokenizer for transformers and vLLM: BOS in front, one word per token, single spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

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

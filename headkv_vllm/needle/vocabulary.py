# SPDX-License-Identifier: Apache-2.0
"""The needle model's 448 words, every one of them a token, so that prompts are readable text."""

from typing import Final

BOS: Final = "<bos>"
EOS: Final = "<eos>"
PAD: Final = "<pad>"
UNK: Final = "<unk>"
SPECIAL_WORDS: Final = (BOS, EOS, PAD, UNK)

END: Final = ";"
"""Ends a needle in the prompt and an entry of the answer."""
ASK: Final = "?"
"""Opens the question."""
REPLY: Final = ":"
"""Ends the question; the next token is the first of the answer."""
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
"""Stands in a fact only: `key near place ;`."""
PLACES: Final = tuple(
    """
    river mountain forest meadow harbour village window garden stone bridge road field bench gate
    """.split()
)
"""Stand in statements and facts only."""
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

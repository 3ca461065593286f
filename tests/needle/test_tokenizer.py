# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from headkv_vllm.needle import checkpoint_path
from headkv_vllm.needle.vocabulary import (
    BOS,
    EOS,
    FILLER,
    KEYS,
    PAD,
    PLACES,
    SPECIAL_WORDS,
    TOKEN_IDS,
    UNK,
    VALUES,
    WORDS,
    build_tokenizer,
)

BUILT = build_tokenizer(8192)
SHIPPED = AutoTokenizer.from_pretrained(checkpoint_path())
PLAIN_WORDS = [word for word in WORDS if word not in SPECIAL_WORDS]


def test_the_vocabulary_has_448_different_words():
    assert len(WORDS) == len(set(WORDS)) == 448
    assert (len(FILLER), len(PLACES), len(KEYS), len(VALUES)) == (41, 14, 128, 256)


@pytest.mark.parametrize("tokenizer", [BUILT, SHIPPED], ids=["built", "shipped"])
@given(words=st.lists(st.sampled_from(PLAIN_WORDS)))
def test_text_survives_the_round_trip_with_one_token_a_word(tokenizer, words):
    text = " ".join(words)
    ids = tokenizer(text).input_ids
    assert ids == [TOKEN_IDS[word] for word in (BOS, *words)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer(text, add_special_tokens=False).input_ids == ids[1:]


def test_the_shipped_tokenizer_knows_its_special_words():
    assert SHIPPED.is_fast
    assert (SHIPPED.bos_token, SHIPPED.eos_token, SHIPPED.pad_token) == (BOS, EOS, PAD)
    assert SHIPPED.convert_ids_to_tokens(SHIPPED("the zeppelin").input_ids) == [BOS, "the", UNK]


def test_a_chat_is_its_contents_after_one_bos():
    chat = [{"role": "user", "content": "the river"}, {"role": "user", "content": "? adam :"}]
    ids = SHIPPED.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert ids == SHIPPED("the river ? adam :").input_ids

"""Encoding then decoding is the identity; text is never a control token; what a file says is checked."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from jaxgpt.errors import InputError
from jaxgpt.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    StreamDecoder,
    Tokenizer,
    tokenizer_from_json,
)

TEST_DATA = Path(os.environ.get("JAXGPT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

TEXTS = [
    "",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n",
    "nul \0 and tab \t and CRLF \r\n",
    "na\u00efve \u4f60\u597d \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "before<|endoftext|>after",
    "   many   blanks\n\n\n   ",
]


@pytest.fixture
def gpt2(monkeypatch) -> GPT2Tokenizer:
    cache = TEST_DATA / "tiktoken_cache"
    if not cache.is_dir():
        pytest.skip(f"no GPT-2 vocabulary in {cache}; JAXGPT_TEST_DATA names the directory that holds it")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return GPT2Tokenizer()


@pytest.fixture(params=["char", "byte", "gpt2"])
def tokenizer(request) -> Tokenizer:
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return CharTokenizer.from_text("".join(TEXTS)) if request.param == "char" else ByteTokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_decode_inverts_encode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(np.array(ids, np.uint16)) == text.encode()
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.end_of_text not in ids


def test_token_bytes_count_the_text(tokenizer):
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int32 and sizes.shape == (tokenizer.vocab_size,)
    for text in TEXTS:
        assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.end_of_text is None or sizes[tokenizer.end_of_text] == 0


def test_json_gives_an_equal_tokenizer(tokenizer):
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert (again.name, again.vocab_size, again.digest()) == (tokenizer.name, tokenizer.vocab_size, tokenizer.digest())
    assert again.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])


def test_digests_tell_tokenizers_apart_and_never_change():
    assert CharTokenizer("ab").digest() != CharTokenizer("ba").digest()
    canonical = b'{"chars":"a\\u4f60","kind":"char"}'
    assert CharTokenizer("a\u4f60").digest() == hashlib.sha256(canonical).hexdigest()


def test_batch_equals_one_by_one(tokenizer):
    batch = tokenizer.encode_batch(TEXTS, n_threads=3)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in TEXTS]


def test_gpt2_equals_tiktoken(gpt2):
    reference = tiktoken.get_encoding("gpt2")
    assert gpt2.vocab_size == reference.n_vocab and gpt2.end_of_text == reference.eot_token
    assert gpt2.encode("hello world") == [31373, 995]
    for text in TEXTS:
        assert gpt2.encode(text) == reference.encode_ordinary(text)


def test_gpt2_survives_a_million_blanks(gpt2):
    """tiktoken's regex overflows its stack on them and panics."""
    text = "a" + " " * 1_100_000 + "\n" * 1_100_000 + "b"
    assert gpt2.decode(gpt2.encode(text)) == text


@pytest.mark.parametrize("text", ["a\ud83db", "\ude00\ud83d"])
def test_lone_surrogates_are_replaced_in_gpt2(gpt2, text):
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


@pytest.mark.parametrize("text", ["a\ud83db", "\ude00\ud83d"])
def test_lone_surrogates_are_replaced_in_bytes_and_refused_in_characters(text):
    replaced = "".join("\ufffd" if c > "\ud000" else c for c in text)
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == replaced
    with pytest.raises(InputError, match=r"lone surrogate"):
        CharTokenizer.from_text(text)
    with pytest.raises(InputError, match=r"character '\\u"):
        CharTokenizer("ab").encode(text)


def test_surrogate_pairs_become_their_character():
    assert ByteTokenizer().decode(ByteTokenizer().encode("\ud83d\ude00")) == "\U0001f600"


@pytest.mark.parametrize("stranger", ["!", "\u4f60", "\U0001f600", "\0"])
def test_unknown_character_is_named(stranger):
    with pytest.raises(InputError) as error:
        CharTokenizer.from_text("hello").encode("hell" + stranger)
    assert str(error.value).startswith(f"character {stranger!r} at position 4 is not among the 4")
    assert "--tokenizer gpt2" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [-1, 256, 50256])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(InputError, match=rf"token id {bad} is outside the byte vocabulary of 256"):
        ByteTokenizer().decode([65, bad])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected a JSON object"),
        (["char"], "expected a JSON object"),
        ({}, "kind=None is unknown"),
        ({"kind": "pickle"}, "kind='pickle' is unknown"),
        ({"kind": ["char"]}, "is unknown"),
        ({"kind": "char"}, "check chars"),
        ({"kind": "gpt2", "path": "../x"}, "check path"),
        ({"kind": "char", "chars": 7}, "chars is a int"),
        ({"kind": "char", "chars": ["a", "b"]}, "chars is a list"),
        ({"kind": "char", "chars": ""}, "empty"),
        ({"kind": "char", "chars": "abca"}, "'a' occurs twice"),
        ({"kind": "char", "chars": "a\ud800"}, "lone surrogate"),
    ],
)
def test_untrusted_json_is_checked(value, message):
    with pytest.raises(InputError) as error:
        tokenizer_from_json(value)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_network_the_way_out_is_named(monkeypatch):
    def offline(name):
        raise ConnectionError("name resolution")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    tokenizer = tokenizer_from_json({"kind": "gpt2"})  # needs no vocabulary
    assert tokenizer.vocab_size == 50257
    with pytest.raises(InputError, match=r"fetches it from the network once.*TIKTOKEN_CACHE_DIR"):
        tokenizer.encode("a")


def test_stream_shows_whole_characters_only(tokenizer):
    for text in TEXTS:
        decoder = StreamDecoder(tokenizer)
        parts = [decoder.feed(i) for i in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(parts)
        assert "".join(parts) + decoder.finish() == text


def test_stream_ends_inside_a_character():
    decoder = StreamDecoder(ByteTokenizer())
    assert [decoder.feed(i) for i in "\U0001f600".encode()[:3]] == ["", "", ""]
    assert decoder.finish() == "\ufffd"

"""Encoding then decoding is the identity; text is never a control token; what a file says is checked."""

import hashlib
import json
import os
import random
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken

from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.tokenizer import (
    CHAT_SPECIALS,
    RUN_CHARS,
    SPLIT_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    StreamDecoder,
    Tokenizer,
    tokenizer_from_json,
)
from jaxgpt.errors import InputError

TEST_DATA = Path(os.environ.get("JAXGPT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

TEXTS = [
    "",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n",
    "nul \0 and tab \t and CRLF \r\n",
    "na\u00efve \u4f60\u597d \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "before<|endoftext|>after",
    "   many   blanks\n\n\n   ",
    "<|bos|><|user_start|>they'll say 12345 IT'S<|user_end|>",
]
BYTES = [bytes([byte]) for byte in range(256)]


@pytest.fixture
def gpt2(monkeypatch) -> GPT2Tokenizer:
    cache = TEST_DATA / "tiktoken_cache"
    if not cache.is_dir():
        pytest.skip(f"no GPT-2 vocabulary in {cache}; JAXGPT_TEST_DATA names the directory that holds it")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return GPT2Tokenizer()


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    """A small vocabulary that has merged blanks, digits, control tokens' names and parts of wide characters."""
    return train_bpe([text + word for text in TEXTS for word in ("the they there then", " 1234", "\U0001f600")], 400)


@pytest.fixture(params=["char", "byte", "gpt2", "bpe"])
def tokenizer(request) -> Tokenizer:
    if request.param in ("gpt2", "bpe"):
        return request.getfixturevalue(request.param)
    return CharTokenizer.from_text("".join(TEXTS)) if request.param == "char" else ByteTokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_decode_inverts_encode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(np.array(ids, np.uint16)) == text.encode()
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    assert not {tokenizer.end_of_text, tokenizer.begin_of_text, *tokenizer.specials.values()} & set(ids)


def test_token_bytes_count_the_text(tokenizer):
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int32 and sizes.shape == (tokenizer.vocab_size,)
    for text in TEXTS:
        assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
    assert all(sizes[i] == 0 for i in tokenizer.specials.values())
    assert np.count_nonzero(sizes) == tokenizer.vocab_size - len(tokenizer.specials)


def test_json_gives_an_equal_tokenizer(tokenizer):
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert (again.name, again.vocab_size, again.digest()) == (tokenizer.name, tokenizer.vocab_size, tokenizer.digest())
    assert again.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])


def test_digests_tell_tokenizers_apart_and_never_change():
    assert CharTokenizer("ab").digest() != CharTokenizer("ba").digest()
    canonical = b'{"chars":"a\\u4f60","kind":"char"}'
    assert CharTokenizer("a\u4f60").digest() == hashlib.sha256(canonical).hexdigest()


def test_digest_of_a_bpe_never_changes():
    """What the file says and nothing else: the digest is in checkpoints."""
    tokens = [chr(byte) for byte in range(256)] + ["th", "\u00c3\u00a9"]
    value = {"kind": "bpe", "split": SPLIT_PATTERN, "tokens": tokens, "specials": ["<|bos|>"]}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    tokenizer = BPETokenizer([*BYTES, b"th", "\u00e9".encode()], ["<|bos|>"])
    assert tokenizer.to_json() == value and tokenizer.digest() == hashlib.sha256(canonical).hexdigest()
    assert tokenizer.digest() != BPETokenizer([*BYTES, "\u00e9".encode(), b"th"], ["<|bos|>"]).digest()
    assert hashlib.sha256(SPLIT_PATTERN.encode()).hexdigest().startswith("4513fed735f5b87d")


def test_batch_equals_one_by_one(tokenizer):
    batch = tokenizer.encode_batch(TEXTS, n_threads=3)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in TEXTS]


def test_gpt2_equals_tiktoken(gpt2):
    reference = tiktoken.get_encoding("gpt2")
    assert gpt2.vocab_size == reference.n_vocab and gpt2.end_of_text == reference.eot_token
    assert gpt2.encode("hello world") == [31373, 995]
    for text in TEXTS:
        assert gpt2.encode(text) == reference.encode_ordinary(text)


def slow_encode(tokenizer: BPETokenizer, text: str) -> list[int]:
    """BPE as its definition has it: of all neighbours that make a token, the leftmost of lowest rank is merged."""
    ranks = {token.encode("latin-1"): i for i, token in enumerate(tokenizer.to_json()["tokens"])}
    ids = []
    for word in regex.findall(SPLIT_PATTERN, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while found := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            i = min(found)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def random_texts(n: int, seed: int) -> list[str]:
    """Words, blanks, digits and control tokens' names, and characters from all over Unicode."""
    draw = random.Random(seed)
    common = [*"aehnrty '\n.,1234567890<|>", "the", "there", "  ", "\r\n", "<|bos|>", "'ll", "\u00a0", "\u0301"]
    blocks = [(0, 0x7F), (0x80, 0x24F), (0x370, 0x52F), (0x4E00, 0x4F00), (0x2000, 0x206F), (0x1F300, 0x1F6FF)]
    texts = []
    for _ in range(n):
        block = draw.choice([*blocks, (0x10000, 0x10FFFF), (0xE000, 0xFFFF)])
        texts.append(
            "".join(
                draw.choice(common) if draw.random() < 0.8 else chr(draw.randint(*block))
                for _ in range(draw.randint(0, 60))
            )
        )
    return texts


def test_bpe_equals_its_definition_on_random_texts(bpe):
    sizes = bpe.token_bytes()
    for text in [*TEXTS, *random_texts(400, seed=0)]:
        ids = bpe.encode(text)
        assert ids == slow_encode(bpe, text)
        assert bpe.decode(ids) == text and sizes[ids].sum() == len(text.encode())


def test_bpe_reads_long_words_as_short_ones(bpe):
    """tiktoken merges words of many bytes by another algorithm."""
    for text in random_texts(5, seed=1):
        word = "".join(c for c in text if c.isalpha()) * 40 + "thethere" * 60
        assert bpe.encode(word) == slow_encode(bpe, word)


@pytest.mark.parametrize("unit", ["a", "the", " ", "\n", "!", "\u4f60", "\u00a0", "\n ", "'s"])
def test_bpe_ends_soon_whatever_the_text_repeats(bpe, unit):
    text = "x" + unit * (1_000_000 // len(unit)) + "y"
    began = time.monotonic()
    assert bpe.decode(bpe.encode(text)) == text
    assert time.monotonic() - began < 20  # some 0.5 s; without the cuts, or by n * n steps, never


@pytest.mark.parametrize(("before", "unit", "after"), [("the ", "a", " then"), ("then", " ", "the")])
def test_only_runs_past_the_limit_are_cut(bpe, before, unit, after):
    direct, run = bpe._bpe.encode_ordinary, unit * RUN_CHARS
    assert bpe.encode(before + run + after) == direct(before + run + after)
    text = before + run + run + unit * 5 + after
    assert bpe.encode(text) == direct(before + run) + direct(run) + direct(unit * 5 + after)


def test_special_tokens_are_asked_for_by_name(tokenizer, bpe):
    """Faults: C49."""
    assert bpe.vocab_size == 400 and bpe.begin_of_text == 391 and bpe.end_of_text is None
    assert [bpe.special_id(name) for name in CHAT_SPECIALS] == list(range(391, 400))
    assert bpe.decode([391, *bpe.encode("the"), 399]) == "<|bos|>the<|output_end|>"
    with pytest.raises(InputError, match=r"the \w+ tokenizer has no <\|system\|> \(it has: .*\); use one"):
        tokenizer.special_id("<|system|>")
    assert "<|bos|>" in tokenizer.specials or tokenizer.begin_of_text is None


def test_gpt2_survives_a_million_blanks(gpt2):
    """tiktoken's regex overflows its stack on them and panics."""
    text = "a" + " " * 1_100_000 + "\n" * 1_100_000 + "b"
    assert gpt2.decode(gpt2.encode(text)) == text


@pytest.mark.parametrize("text", ["a\ud83db", "\ude00\ud83d"])
def test_lone_surrogates_are_replaced_in_gpt2(gpt2, text):
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


@pytest.mark.parametrize("text", ["a\ud83db", "\ude00\ud83d"])
def test_lone_surrogates_are_replaced_in_bytes_and_refused_in_characters(bpe, text):
    replaced = "".join("\ufffd" if c > "\ud000" else c for c in text)
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == replaced
    assert bpe.decode(bpe.encode(text)) == replaced
    with pytest.raises(InputError, match=r"lone surrogate"):
        CharTokenizer.from_text(text)
    with pytest.raises(InputError, match=r"character '\\u"):
        CharTokenizer("ab").encode(text)


def test_surrogate_pairs_become_their_character():
    assert ByteTokenizer().decode(ByteTokenizer().encode("\ud83d\ude00")) == "\U0001f600"


@pytest.mark.parametrize("stranger", ["!", "\u4f60", "\U0001f600", "\0"])
def test_unknown_character_is_named(stranger):
    """Faults: C50."""
    with pytest.raises(InputError) as error:
        CharTokenizer.from_text("hello").encode("hell" + stranger)
    assert str(error.value).startswith(f"character {stranger!r} at position 4 is not among the 4")
    assert "--tokenizer gpt2" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [-1, 256, 50256])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(InputError, match=rf"token id {bad} is outside the byte vocabulary of 256"):
        ByteTokenizer().decode([65, bad])


BPE = BPETokenizer([*BYTES, b"th"]).to_json()


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
        ({"kind": "bpe"}, "check specials, split, tokens"),
        ({**BPE, "merges": []}, "check merges"),
        ({**BPE, "split": "(a+)+$"}, "split='(a+)+$' is not this version's pattern"),
        ({**BPE, "split": None}, "split='None' is not this version's pattern"),
        ({**BPE, "tokens": "abc"}, "tokens is not a list of strings"),
        ({**BPE, "tokens": {"a": 0}}, "tokens is not a list of strings"),
        ({**BPE, "tokens": [*BPE["tokens"], 7]}, "tokens is not a list of strings"),
        ({**BPE, "specials": [["<|bos|>"]]}, "specials is not a list of strings"),
        ({**BPE, "tokens": [*BPE["tokens"], "\u4f60"]}, "'\u4f60' in tokens is not a byte"),
        ({**BPE, "tokens": [*BPE["tokens"], "\ud800"]}, "in tokens is not a byte"),
        ({**BPE, "tokens": [*BPE["tokens"], ""]}, "token 257 is empty"),
        ({**BPE, "tokens": [*BPE["tokens"], "th"]}, "b'th' occurs twice"),
        ({**BPE, "tokens": BPE["tokens"][1:]}, "no token is the single byte 0x00"),
        ({**BPE, "tokens": []}, "no token is the single byte 0x00"),
        ({**BPE, "specials": ["<|bos|>", "<|bos|>"]}, "special token's name occurs twice"),
        ({**BPE, "specials": ["the"]}, "'the' is not a name for a special token"),
        ({**BPE, "specials": ["<|\x1b[2J|>"]}, "is not a name for a special token"),
        ({**BPE, "tokens": ["a"] * (1 << 20)}, "the limits are 1048576"),
        ({**BPE, "tokens": [*BPE["tokens"], "a" * (65 << 20)]}, "the limits are 1048576 and 67108864"),
    ],
    ids=lambda item: str(item)[:30],
)
def test_untrusted_json_is_checked(value, message):
    """Faults: C45, C48."""
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
    """Faults: C107."""
    for text in TEXTS:
        decoder = StreamDecoder(tokenizer)
        parts = [decoder.feed(i) for i in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(parts)
        assert "".join(parts) + decoder.finish() == text


def test_stream_ends_inside_a_character():
    decoder = StreamDecoder(ByteTokenizer())
    assert [decoder.feed(i) for i in "\U0001f600".encode()[:3]] == ["", "", ""]
    assert decoder.finish() == "\ufffd"

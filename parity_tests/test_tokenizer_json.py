"""A tokenizer.json written here gives the same ids in Hugging Face's `tokenizers`, for text in many scripts."""

import json
import random
import re

import pytest
import tiktoken

from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, GPT2Tokenizer
from jaxgpt.data.tokenizer.byte_pairs import GPT2_SPLIT_PATTERN
from jaxgpt.formats.tokenizer_json import list_merges, to_tokenizer_json

SCRIPTS = {
    "ascii": (0x20, 0x7E), "latin": (0xA1, 0x24F), "greek": (0x391, 0x3C9), "cyrillic": (0x410, 0x44F),
    "armenian": (0x561, 0x586), "hebrew": (0x5D0, 0x5EA), "arabic": (0x627, 0x64A), "devanagari": (0x905, 0x94D),
    "bengali": (0x985, 0x9CD), "tamil": (0xB85, 0xBCD), "thai": (0xE01, 0xE4E), "georgian": (0x10D0, 0x10F0),
    "hangul jamo": (0x1100, 0x11FF), "ethiopic": (0x1200, 0x1248), "khmer": (0x1780, 0x17D2),
    "symbols": (0x2190, 0x22FF), "kana": (0x3041, 0x30FE), "han": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3),
    "emoji": (0x1F300, 0x1FAFF),
}  # fmt: skip
SPACES = [" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "    ", "\u00a0", "\u3000", ""]
PIECES = ["don't", "I'LL", "x1234567", "...", "!?", "3.14", "_a_b", "<|endoftext|>", "\u200d", "e\u0301", "\x00"]


def make_texts(n: int) -> list[str]:
    """Words of 20 scripts, digits, contractions, blanks of all kinds, control tokens spelled out."""
    choices = random.Random(0)
    texts = []
    for number in range(n):
        ranges = [choices.choice(list(SCRIPTS.values())) for _ in range(3)]
        text = ""
        for _ in range(choices.randint(1, 25)):
            first, last = choices.choice(ranges)
            word = "".join(chr(choices.randint(first, last)) for _ in range(choices.randint(1, 8)))
            text += choices.choice([word, word, word, choices.choice(PIECES)]) + choices.choice(SPACES)
        texts.append(text if number % 7 else text.strip() + " ")
    return texts


def hugging_face(tokenizer, directory):
    tokenizers = pytest.importorskip("tokenizers")
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(to_tokenizer_json(tokenizer)), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.encode_special_tokens = True
    return theirs


def check_equal_ids(tokenizer, directory, texts):
    theirs = hugging_face(tokenizer, directory)
    for text, encoded in zip(texts, theirs.encode_batch(texts), strict=True):
        assert encoded.ids == tokenizer.encode(text), repr(text)
        assert theirs.decode(encoded.ids, skip_special_tokens=False) == text
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    for name, token_id in tokenizer.specials.items():
        assert theirs.token_to_id(name) == token_id


def train_small() -> BPETokenizer:
    texts = [" ".join(re.findall(r"\w+|\S", text)) for text in make_texts(1500)]
    return train_bpe(iter(texts), 2000)


def test_bpe(tmp_path):
    check_equal_ids(train_small(), tmp_path, make_texts(10_000))


def test_gpt2(gpt2_vocabulary, tmp_path):
    assert tiktoken.get_encoding("gpt2")._pat_str == GPT2_SPLIT_PATTERN
    check_equal_ids(GPT2Tokenizer(), tmp_path, make_texts(10_000))


def test_bytes(tmp_path):
    check_equal_ids(ByteTokenizer(), tmp_path, make_texts(500))


def test_characters(tmp_path):
    texts = make_texts(500)
    check_equal_ids(CharTokenizer.from_text("".join(texts)), tmp_path, texts)


def test_every_pair_that_makes_a_token_is_a_merge():
    """tiktoken merges "a" + "bc" where "bc" came first, though "abc" was learned from "ab" + "c"."""
    tokens = [b"a", b"b", b"c", b"bc", b"ab", b"abc"]
    merges = [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"ab", b"c")]
    assert list_merges(tokens) == merges


def test_a_token_that_no_merges_make(tmp_path):
    """A whole word that is a token is one, as in tiktoken, also where no two tokens make it."""
    tokenizer = BPETokenizer([*(bytes([byte]) for byte in range(256)), b"abc"])
    assert tokenizer.encode("abc abcd") == [256, 32, *b"abcd"]
    check_equal_ids(tokenizer, tmp_path, ["abc abcd", "abc"])

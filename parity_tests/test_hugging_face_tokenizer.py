"""Tokenizers of other models, read from their tokenizer.json: the ids are those of transformers, decoding inverts."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxgpt.data.tokenizer import GPT2Tokenizer, HuggingFaceTokenizer, tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.formats.tokenizer_json import to_tokenizer_json
from jaxgpt.formats.vocabulary import read_tokenizer
from parity_tests.helpers.national_gpt2 import END, LINES, make_byte_level

TEXTS = [
    "", " ", "ეს სახლი", " არის  დიდი\n\n", "".join(LINES), "🏠🏡 zebra", "<|endoftext|><s>[CLS]", "a\r\n\x00b",
    "é e\u0301",
]  # fmt: skip


def make_llama3() -> tokenizers.Tokenizer:
    """A pattern before the bytes, and a token that is put in front of a text."""
    made = make_byte_level()
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?[^\s\p{N}]+|\s+"), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    made.add_special_tokens(["<s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    made.enable_truncation(8)
    made.enable_padding(length=16, pad_token=END)
    return made


def make_word_piece() -> tokenizers.Tokenizer:
    made: Any = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made


def make_unigram() -> tokenizers.Tokenizer:
    made: Any = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    settings = {"special_tokens": ["<unk>", "</s>"], "unk_token": "<unk>", "show_progress": False}
    made.train_from_iterator(LINES, trainers.UnigramTrainer(vocab_size=300, **settings))
    return made


def make_byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2: characters, and bytes for those that are rare."""
    letters = sorted({*"".join(LINES[:1])} - {"🏠", "\n", "\t"} | {"▁"})
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "▁th", "▁the"]
    vocab = {name: i for i, name in enumerate(names)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    made: Any = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


MADE = {
    "byte_level": make_byte_level, "llama3": make_llama3, "word_piece": make_word_piece, "unigram": make_unigram,
    "byte_fallback": make_byte_fallback,
}  # fmt: skip
EXACT = ("byte_level", "llama3")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A directory with each."""
    place = tmp_path_factory.mktemp("tokenizers")
    for name, make in MADE.items():
        (place / name).mkdir()
        make().save(str(place / name / "tokenizer.json"))
    (place / "byte_level" / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 0}')
    ends = {"bos_token": "<s>", "eos_token": {"content": END, "lstrip": False}}
    (place / "llama3" / "tokenizer_config.json").write_text(json.dumps(ends))
    (place / "unigram" / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    return place


def read(places, name) -> HuggingFaceTokenizer:
    tokenizer = read_tokenizer(places / name)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


def message(function, *args) -> str:
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", MADE)
def test_ids_and_texts_are_those_of_transformers(places, name):
    """A special token's name in a text is text; transformers says so with split_special_tokens."""
    ours, theirs = (
        read(places, name),
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(places / name / "tokenizer.json")),
    )
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False), text
    assert [i.tolist() for i in ours.encode_batch(TEXTS, n_threads=3)] == [ours.encode(text) for text in TEXTS]
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("name", EXACT)
def test_bytes_of_a_byte_level_bpe(places, name):
    tokenizer = read(places, name)
    sizes = tokenizer.token_bytes()
    assert sizes is not None and (sizes.shape, sizes.dtype) == ((tokenizer.vocab_size,), np.int32)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and sizes[ids].sum() == len(text.encode())
    assert [i for i, size in enumerate(sizes) if not size] == sorted(tokenizer.specials.values())
    assert tokenizer.decode([tokenizer.special_id(END)]) == END
    assert "outside the hugging_face vocabulary" in message(tokenizer.decode, [tokenizer.vocab_size])


@pytest.mark.parametrize("name", sorted(MADE.keys() - set(EXACT)))
def test_other_tokenizers_have_no_bytes(places, name):
    assert read(places, name).token_bytes() is None


@pytest.mark.parametrize("name", MADE)
def test_a_stream_is_the_whole_text(places, name):
    """Also behind a prompt, where a word begins with the space that a first word lacks."""
    tokenizer, text = read(places, name), "ეს სახლი არის the house is big 🏠 大 !"
    ids = tokenizer.encode(text)
    for n_prompt in (0, 1, len(ids) // 2):
        while "\ufffd" in tokenizer.decode(ids[:n_prompt]):  # inside a character
            n_prompt += 1
        decoder = tokenizer.stream_decoder(ids[:n_prompt])
        pieces = [decoder.feed(i) for i in ids[n_prompt:]]
        assert "\ufffd" not in "".join(pieces) and len([piece for piece in pieces if piece]) > 3
        assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)[len(tokenizer.decode(ids[:n_prompt])) :]


def test_a_character_that_never_ends_is_shown_at_the_end(places):
    tokenizer = read(places, "byte_fallback")
    decoder = tokenizer.stream_decoder()
    ids = tokenizer.encode("a🏠")[:-1]
    assert "".join(map(decoder.feed, ids)) == "a"
    assert set(decoder.finish()) == {"\ufffd"} and decoder.finish() == ""


@pytest.mark.parametrize(
    ("name", "begin", "end", "prompt"),
    [
        ("byte_level", None, END, [END]),
        ("llama3", "<s>", END, ["<s>"]),
        ("word_piece", None, None, None),
        ("unigram", None, "</s>", ["</s>"]),
    ],
    ids=["byte_level", "llama3", "word_piece", "unigram"],
)
def test_which_tokens_begin_and_end_a_text(places, name, begin, end, prompt):
    """Whoever puts both around a text says that in other files; a first token counts where the tokenizer adds it."""
    tokenizer = read(places, name)
    assert (tokenizer.begin_of_text, tokenizer.end_of_text) == (tokenizer.id_of(begin), tokenizer.id_of(end))
    if prompt is None:
        assert "the prompt is empty" in message(tokenizer.encode_prompt, "")
    else:
        assert tokenizer.encode_prompt("") == [tokenizer.id_of(token) for token in prompt]


@pytest.mark.parametrize("name", MADE)
def test_json_and_tokenizer_json_give_an_equal_tokenizer(places, name, tmp_path):
    tokenizer = read(places, name)
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert isinstance(again, HuggingFaceTokenizer) and again.digest() == tokenizer.digest()
    assert again.encode(TEXTS[4]) == tokenizer.encode(TEXTS[4]) and again.stop_ids() == tokenizer.stop_ids()
    shutil.copytree(places / name, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(to_tokenizer_json(tokenizer)))
    assert read(tmp_path, "out").digest() == tokenizer.digest()
    if name != "llama3":  # truncation and padding are left out
        assert to_tokenizer_json(tokenizer) == json.loads((places / name / "tokenizer.json").read_text())


def test_vocab_and_merges_alone(places, tmp_path):
    """As transformers reads them."""
    made = make_byte_level()
    made.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": 0}')
    tokenizer = read_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.end_of_text == 0
    for text in TEXTS:
        ids = theirs(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.encode(text) == ids == read(places, "byte_level").encode(text)


def test_a_national_gpt2_is_not_read_as_openais(gpt2_vocabulary, tmp_path):
    """The same number of ids, the same tokens even; only its merges differ."""
    content = to_tokenizer_json(GPT2Tokenizer())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert isinstance(read_tokenizer(tmp_path), GPT2Tokenizer)
    content["model"] |= {"merges": content["model"]["merges"][::-1], "ignore_merges": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    national = read_tokenizer(tmp_path)
    assert isinstance(national, HuggingFaceTokenizer) and national.vocab_size == 50257
    text = "The national language of the country"
    assert national.encode(text) != GPT2Tokenizer().encode(text) and national.decode(national.encode(text)) == text


def test_what_would_be_lost_is_refused():
    """A vocabulary without all bytes drops what it lacks; transformers does so silently."""
    tokenizer = HuggingFaceTokenizer(json.loads(make_byte_level(alphabet=False).to_str()))
    assert tokenizer.decode(tokenizer.encode("ეს სახლი")) == "ეს სახლი"
    assert "has no id for" in message(tokenizer.encode, "ÿ") and tokenizer.token_bytes() is not None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"decoder": None},
    ],
    ids=["normalizer", "prefix space", "no decoder"],
)
def test_bytes_are_known_only_where_nothing_changes_the_text(change):
    content = json.loads(make_byte_level().to_str()) | change
    assert HuggingFaceTokenizer(content).token_bytes() is None


def test_dropout_is_left_out():
    content = json.loads(make_byte_level().to_str())
    content["model"]["dropout"] = 0.5
    tokenizer = HuggingFaceTokenizer(content)
    assert len({tuple(tokenizer.encode(LINES[0])) for _ in range(10)}) == 1


def broken(**changes) -> dict[str, Any]:
    content = json.loads(make_byte_level().to_str())
    return content | changes


BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (lambda: {"content": {}}, "tokenizer.json cannot be read: Model missing"),
        (lambda: {"content": []}, "content is not an object"),
        (lambda: {"content": broken(model={"type": "Neural"})}, "tokenizer.json cannot be read"),
        (
            lambda: {"content": broken(model=BPE | {"merges": [["a", "b"]]})},
            "cannot be read",
        ),
        (lambda: {"content": broken(model=BPE | {"vocab": {"a": 1 << 30}})}, "ids, outside"),
        (lambda: {"content": broken(model=BPE | {"vocab": {"\ud800": 0}})}, "cannot be read"),
        (lambda: {"content": broken(), "end_of_text": 500}, "end_of_text=500 is none of"),
        (lambda: {"content": broken(), "begin_of_text": "a"}, "an id not an int"),
    ],
    ids=range(8),
)
def test_a_damaged_one_is_one_line(value, wanted):
    ends = {"begin_of_text": None, "end_of_text": None}
    assert wanted in message(tokenizer_from_json, {"kind": "hugging_face"} | ends | value())


def test_a_pattern_without_end_is_one_line(capfd):
    tokenizer = HuggingFaceTokenizer(broken(pre_tokenizer=SLOW))
    assert "the tokenizer cannot encode this text: Onig" in message(tokenizer.encode, "a" * 40 + "b")
    capfd.readouterr()

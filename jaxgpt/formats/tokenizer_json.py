"""Our tokenizers as the tokenizer.json of Hugging Face's `tokenizers`, which gives the same ids for every text.

A byte-level BPE here merges, of all adjacent pairs whose bytes together are a token, the one whose token has the lowest
id (tiktoken's rule). `tokenizers` merges listed pairs in the order of the list, so the list has every pair of tokens
that makes a token, in the order of the ids they make.

One difference remains: here "<|endoftext|>" in a text is text. `tokenizers` reads it as the control token unless its
`encode_special_tokens` is set, and transformers unless `split_special_tokens` is.

References: https://huggingface.co/docs/tokenizers/api/models; transformers' TikTokenConverter has the same list.
"""

from typing import Any

from jaxgpt.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
)
from jaxgpt.data.tokenizer.byte_pairs import GPT2_SPLIT_PATTERN, SPLIT_PATTERN, spell, unspell
from jaxgpt.errors import InputError


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json with the ids of this tokenizer."""
    match tokenizer:
        case CharTokenizer():
            every_character = {
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            }
            model = {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(tokenizer.chars)}, "unk_token": ""}
            return _assemble(model, every_character, {"type": "Fuse"}, {})
        case ByteTokenizer():
            tokens, split = [bytes([byte]) for byte in range(256)], None
        case GPT2Tokenizer():
            tokens, split = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size - 1)], GPT2_SPLIT_PATTERN
        case BPETokenizer():
            tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size - len(tokenizer.specials))]
            split = SPLIT_PATTERN
        case HuggingFaceTokenizer():
            return tokenizer.content
        case _:
            raise AssertionError(f"no tokenizer.json for {tokenizer.name}")
    return byte_level_json(tokens, split, dict(tokenizer.specials))


def byte_level_json(tokens: list[bytes], split: str | None, specials: dict[str, int]) -> dict[str, Any]:
    """The content of a byte-level BPE's tokenizer.json.

    Args:
      tokens: the bytes of each id, in the order in which they merge.
      split: the pattern that cuts text; None: it is not cut.
      specials: control tokens by name, with their ids.
    """
    spelled = [spell(token) for token in tokens]
    model = {
        "type": "BPE",
        "vocab": {name: i for i, name in enumerate(spelled)} | specials,
        "merges": [[spell(left), spell(right)] for left, right in list_merges(tokens)],
        "ignore_merges": True,  # a piece that is a token is that token, as in tiktoken
    }
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    steps = [bytes_only]
    if split is not None:
        steps.insert(0, _split(split))
    return _assemble(model, {"type": "Sequence", "pretokenizers": steps}, bytes_only, specials)


def from_tokenizer_json(content: dict[str, Any]) -> Tokenizer | None:
    """The inverse, for all but GPT-2's; None for a tokenizer.json that this module did not write."""
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return None
    try:
        names = sorted(model["vocab"], key=model["vocab"].__getitem__)
        specials = [token["content"] for token in content["added_tokens"]]
        tokens = [unspell(name) for name in names[: len(names) - len(specials)]]
        if model["type"] == "WordLevel":
            tokenizer = CharTokenizer("".join(names))
        elif tokens == [bytes([byte]) for byte in range(256)] and not specials:
            tokenizer = ByteTokenizer()
        elif content["pre_tokenizer"] == byte_level_json([], SPLIT_PATTERN, {})["pre_tokenizer"]:
            tokenizer = BPETokenizer(tokens, specials)
        else:
            return None
    except (InputError, KeyError, TypeError):
        return None
    return tokenizer if to_tokenizer_json(tokenizer) == content else None


def list_merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens whose bytes together are a token, in the order of the token they make.

    Pairs that make the same token come in the order of their own ids.
    """
    ranks = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _assemble(model: dict, pre_tokenizer: dict, decoder: dict, specials: dict[str, int]) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": name, **plain} for name, i in specials.items()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }

"""Conversations become the tokens and masks that nanochat gives them; malformed ones name message and reason."""

import copy
import json

import numpy as np
import pytest

from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.conversations import Conversation, cut, render, render_for_completion, require_chat_tokens
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from parity_tests.helpers.chat_data import BYTES, digest, fastchat, gsm8k, say

TOOL = [
    {"type": "text", "text": "x"},
    {"type": "python", "text": "1+1"},
    {"type": "python_output", "text": "2"},
    {"type": "text", "text": "y"},
]
TOOL_IDS = [256, 257, 113, 258, 259, 120, 261, 49, 43, 49, 262, 263, 50, 264, 121, 260]
MARKED = [256, 257, 60, 124, 98, 111, 115, 124, 62, 258, 259, 195, 169, 240, 159, 153, 130, 260]
ONLY = [256, 257, *b"only user", 258]

EXAMPLES = {
    "plain": (say("hi", "ok"), 2048, [256, 257, 104, 105, 258, 259, 111, 107, 260], [0] * 6 + [1] * 3),
    "system": (
        say("u", "a", "v", "b", system="S"), 2048,
        [256, 257, 83, 10, 10, 117, 258, 259, 97, 260, 257, 118, 258, 259, 98, 260],
        [0] * 8 + [1, 1] + [0] * 4 + [1, 1],
    ),
    "tool": (say("q", TOOL), 2048, TOOL_IDS, [0] * 5 + [1] * 6 + [0] * 3 + [1, 1]),
    "cut": (say("q", TOOL), 8, TOOL_IDS[:8], [0] * 5 + [1] * 3),
    "marks_as_text": (say("<|bos|>", "\u00e9\U0001f642"), 2048, MARKED, [0] * 11 + [1] * 7),
    "empty": (say("", ""), 2048, [256, 257, 258, 259, 260], [0, 0, 0, 0, 1]),
    "unanswered": (say("only user"), 2048, ONLY, [0] * 12),
}  # fmt: skip
"""Measured on nanochat's own code."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_examples(name):
    conversation, max_tokens, ids, mask = EXAMPLES[name]
    before = copy.deepcopy(conversation)
    rendered = render(conversation, BYTES, max_tokens)
    assert (rendered.ids.tolist(), rendered.mask.tolist()) == (ids, mask)
    assert conversation == before
    assert render(Conversation.read(conversation), BYTES, max_tokens).ids.tolist() == ids


def test_completion_ends_where_the_answer_begins():
    assert render_for_completion(say("hi", "ok"), BYTES).tolist() == [256, 257, 104, 105, 258, 259]
    long = render_for_completion(say("q" * 3000, "ok"), BYTES)
    assert len(long) == 2049 and long[-2:].tolist() == [113, 259]  # the end of the user's turn is lost
    with pytest.raises(InputError, match=r"^messages\[2\]\.role=user is not assistant; "):
        render_for_completion(say("a", "b", "c"), BYTES)


def _pairs(conversations):
    rendered = [render(conversation, BYTES) for conversation in conversations]
    return digest([[r.ids.tolist(), r.mask.tolist()] for r in rendered]), rendered


def test_digests_of_nanochat():
    found, rendered = _pairs(fastchat())
    assert found == "da99aa7fa6ad271a3abfbe561c344b7a9a291bdd528d93c03ad7e9d33e6033f9"
    assert sum(len(r.ids) for r in rendered) == 85_273
    problems = gsm8k("train")
    found, rendered = _pairs(problems[:100])
    assert found == "fa17d865c4a34d1759519072e44744c19e59adbd9f58837a539d6f93828336e5"
    assert (sum(len(r.ids) for r in rendered), sum(int(r.mask.sum()) for r in rendered)) == (51_236, 26_305)
    prompts = [render_for_completion(problem, BYTES).tolist() for problem in gsm8k("test")[:10]]
    assert digest(prompts) == "6b095336e72be1d0e4c9e69341a477694856bac210792a7e65a61bc8b30919b3"
    lengths, n_trained = zip(
        *((len(r.ids), int(r.mask.sum())) for r in (render(p, BYTES) for p in problems)), strict=True
    )
    assert (sum(lengths), sum(n_trained), max(lengths)) == (3_917_067, 2_031_134, 1_695)


# A vocabulary with merges, and a plain second route


def _plain_render(conversation, tokenizer):
    """Token by token, over strings."""
    special, pairs = tokenizer.specials, []
    messages = [dict(message) for message in conversation["messages"]]
    if messages[0]["role"] == "system":
        text = messages.pop(0)["content"]
        messages[0]["content"] = text + "\n\n" + messages[0]["content"]
    pairs.append((special["<|bos|>"], 0))
    for message in messages:
        if message["role"] == "user":
            pairs.append((special["<|user_start|>"], 0))
            pairs += [(i, 0) for i in tokenizer.encode(message["content"])]
            pairs.append((special["<|user_end|>"], 0))
            continue
        pairs.append((special["<|assistant_start|>"], 0))
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            inner = tokenizer.encode(part["text"])
            if part["type"] == "text":
                pairs += [(i, 1) for i in inner]
            elif part["type"] == "python":
                pairs += [(i, 1) for i in (special["<|python_start|>"], *inner, special["<|python_end|>"])]
            else:
                pairs += [(i, 0) for i in (special["<|output_start|>"], *inner, special["<|output_end|>"])]
        pairs.append((special["<|assistant_end|>"], 1))
    return [i for i, _ in pairs], [m for _, m in pairs]


def _trained_text(conversation):
    """What the assistant says and calls, with marks."""
    marks = {"text": ("", ""), "python": ("<|python_start|>", "<|python_end|>")}
    text = ""
    for message in conversation["messages"]:
        if message["role"] == "assistant":
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            text += "".join(part["text"].join(marks[part["type"]]) for part in parts if part["type"] in marks)
            text += "<|assistant_end|>"
    return text


@pytest.fixture(scope="module")
def merged():
    texts = [message["content"] for conversation in fastchat() for message in conversation["messages"]]
    return train_bpe(texts, 300)


def test_with_merges_it_is_the_plain_algorithm(merged):
    assert merged.vocab_size == 265 + 35
    conversations = [*fastchat(), *gsm8k("train")[:100], *(row[0] for row in EXAMPLES.values())]
    n_bytes = 0
    for conversation in conversations:
        ids, mask = render(conversation, merged, None)
        assert (ids.tolist(), mask.tolist()) == _plain_render(conversation, merged)
        assert merged.decode(ids[mask == 1]) == _trained_text(conversation)
        n_bytes += len(render(conversation, BYTES, None).ids) - len(ids)
    assert n_bytes > 20_000  # the merges did something


def test_every_cut_is_a_prefix(merged):
    for conversation in (*fastchat()[:20], *gsm8k("train")[:5], say("q", TOOL)):
        whole = render(conversation, merged, None)
        for n in range(1, len(whole.ids) + 1):
            short = render(conversation, merged, n) if n % 50 == 0 or len(whole.ids) < 150 else cut(whole, n)
            np.testing.assert_array_equal(short.ids, whole.ids[:n])
            np.testing.assert_array_equal(short.mask, whole.mask[:n])
            assert len(short.ids) == n


# What is malformed


def _roles(*roles):
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


def _answer(content):
    return {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]}


MALFORMED = {
    "no_mapping": (["x"], 'conversation is of type list, not an object; write {"messages": [...]}'),
    "no_messages": ({}, "messages is missing (null), not a list; give a list of role and content"),
    "empty": ({"messages": []}, "messages is empty; give at least a user message"),
    "only_system": (_roles("system"), "messages[0].role=system has no user message after it; add one"),
    "assistant_first": (
        _roles("assistant", "user"),
        "messages[0].role=assistant is not user; user and assistant alternate, the user first",
    ),
    "user_twice": (
        _roles("system", "user", "user"),
        "messages[2].role=user is not assistant; user and assistant alternate, the user first",
    ),
    "system_later": (
        _roles("user", "system"),
        "messages[1].role=system is not assistant; only messages[0] may be the system's, the user first",
    ),
    "unknown_role": (_roles("user", "tool"), "messages[1].role=tool is not one of system, user, assistant; correct it"),
    "no_message": ({"messages": ["x"]}, "messages[0] is of type str, not an object; give it role and content"),
    "user_parts": (
        {"messages": [{"role": "user", "content": TOOL}]},
        "messages[0].content is of type list, not a string; a user message has one text",
    ),
    "number": (_answer(3), "messages[1].content is of type int, not a string or a list of parts; correct it"),
    "unknown_part": (
        _answer([TOOL[0], {"type": "image", "text": "x"}]),
        "messages[1].content[1].type=image is not one of text, python, python_output; correct it",
    ),
    "part_without_text": (
        _answer([{"type": "python"}]), "messages[1].content[0].text is missing (null), not a string; correct it"
    ),
    "no_part": (_answer(["x"]), "messages[1].content[0] is of type str, not an object; give it type and text"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_conversations_name_message_and_reason(name):
    value, message = MALFORMED[name]
    before = copy.deepcopy(value)
    with pytest.raises(InputError) as error:
        render(value, BYTES)
    assert str(error.value) == message and value == before


def test_what_is_read_can_be_written():
    value = {**say("q", TOOL, system="S"), "letters": ["A", "B"]}
    assert Conversation.read(value).to_json() == json.loads(json.dumps(value))


def test_tokenizers_without_control_tokens_are_refused():
    require_chat_tokens(BYTES)
    with pytest.raises(InputError, match=r"^the byte tokenizer has no <\|bos\|>, .*`jaxgpt train_tokenizer`"):
        require_chat_tokens(ByteTokenizer())

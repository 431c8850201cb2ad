"""People's conversations, in three layouts, become what training opens; what is left out is said with its place."""

import gzip
import json
from pathlib import Path

import pytest

from jaxgpt.data.chat_batches import ChatReader, ChatSettings
from jaxgpt.data.chat_data import open_chat
from jaxgpt.data.conversations import render
from jaxgpt.errors import InputError
from jaxgpt.prepare.layouts import conversation_of
from jaxgpt.prepare.source import is_val
from parity_tests.helpers.chat_data import BYTES, CHAT_DATA, fastchat, planned, say
from parity_tests.helpers.prepare_runs import leftovers, refused, run

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def _write(path, values):
    Path(path).write_text("".join(json.dumps(value) + "\n" for value in values))


def _messages(files):
    return [conversation.to_json()["messages"] for conversation in files]


def _turn(speaker, value):
    return {"from": speaker, "value": value}


PARTS = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
OPENAI = {
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello", "weight": 1, "refusal": None},
    ]
}
LAYOUTS = {
    "own_list": (say("a", "b")["messages"], say("a", "b")),
    "own": (say("a", PARTS, system="s"), say("a", PARTS, system="s")),
    "openai": (OPENAI, say("Hi", "Hello", system="Be kind.")),
    "sharegpt": (
        {"conversations": [_turn("system", "s"), _turn("human", "a"), _turn("gpt", "b")]},
        say("a", "b", system="s"),
    ),
    "keys": ({**say("a", "b"), "id": 7}, {**say("a", "b"), "id": 7}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name):
    value, wanted = LAYOUTS[name]
    assert conversation_of(value).to_json() == wanted


def _openai(**fields):
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **fields}]}


LEFT_OUT = {
    "tool_calls": (_openai(content=None, tool_calls=[{}]), "messages[1].tool_calls is set; only text can be trained"),
    "weight": (_openai(weight=0), "messages[1].weight=0 is not 1; every answer is trained alike"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type=image_url is no text; only text can be trained",
    ),
    "tool": (_openai(role="tool"), "messages[1].role=tool is not one of system, user, assistant; correct it"),
    "unanswered": (say("a"), "messages has no assistant message; nothing of it would be trained"),
    "gpt_first": (
        {"conversations": [_turn("gpt", "a")]},
        "messages[0].role=assistant is not user; user and assistant alternate, the user first",
    ),
    "speaker": (
        {"conversations": [_turn("human", "a"), _turn("bard", "b")]},
        "conversations[1].from=bard is not one of human, user, gpt, chatgpt, assistant, system",
    ),
    "no_value": (
        {"conversations": [_turn("human", None)]},
        "messages[0].content is missing (null), not a string; a user message has one text",
    ),
    "text": ({"text": "a"}, "it has no list named messages or conversations (it has: text)"),
    "number": (3, "it is of type int, not a list of messages or an object with messages"),
}


def test_what_is_left_out_is_said_with_line_and_reason(capsys):
    good = [say(f"question {i}", f"answer {i} \ud83d \U0001f642") for i in range(30)]
    lines = [json.dumps(value) for value, _ in LEFT_OUT.values()]
    content = "\n".join([*map(json.dumps, good), "", *lines, "{", ""])
    Path("mine.jsonl").write_bytes(content.encode() + b"\xff\n")
    assert run("chat", "--input", "mine.jsonl", "--val-fraction", "0.2") == 0
    out, reasons = capsys.readouterr().out, [reason for _, reason in LEFT_OUT.values()]
    for number, reason in enumerate(reasons, 32):
        assert f"left out: mine.jsonl:{number}: {reason}\n" in out
    assert "left out: 12 conversations in all; the first 12 of them are in data/chat/chat.json\n" in out
    listed = json.loads(Path("data/chat/chat.json").read_text())["left_out"]
    assert [place for place, _ in listed] == [f"mine.jsonl:{number}" for number in range(32, 44)]
    assert "it is not JSON" in listed[10][1] and listed[11][1] == "it is not UTF-8 at byte 0; convert it"
    data = open_chat("data/chat")
    wanted = json.loads(json.dumps(_messages(map(conversation_of, good))).replace("\\ud83d \\", "\\ufffd \\"))
    assert _messages(data.train) == [m for i, m in enumerate(wanted) if not is_val(i, 0.2)]
    assert _messages(data.val) == [m for i, m in enumerate(wanted) if is_val(i, 0.2)]
    assert len(data.val) > 1 and leftovers() == []


def test_files_of_each_kind_and_their_tokens():
    """FastChat's file is an array in ShareGPT's layout."""
    chat = fastchat()
    assert run("mine", "--format", "chat", "--input", CHAT_DATA / "conversations", "--val-fraction", "0.1") == 0
    Path("own.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(value) + "\n" for value in chat).encode()))
    assert run("chat", "--input", "own.jsonl.gz") == 0
    one, two = open_chat("data/mine_chat"), open_chat("data/chat")
    assert _messages(one.train) == _messages(two.train) and _messages(one.val) == _messages(two.val)
    assert one.digest != two.digest  # the first has ids
    train = [conversation for i, conversation in enumerate(chat) if not is_val(i, 0.1)]
    assert len(train) == len(one.train) == 441 and one.train[-1] == one.train[440]
    assert _messages(one.train[3:5]) == [conversation["messages"] for conversation in train[3:5]]
    for conversation, again in zip(train, one.train, strict=True):
        assert render(conversation, BYTES).ids.tolist() == render(again, BYTES).ids.tolist()
    readers = [ChatReader(rows, one.digest, BYTES, ChatSettings(512)) for rows in (train, one.train)]
    batches = [reader.read(planned(8, 512), 0, 8) for reader in readers]
    assert (batches[0].tokens == batches[1].tokens).all() and (batches[0].mask == batches[1].mask).all()


def test_prepared_again_only_where_something_changed(capsys):
    _write("a.jsonl", [say("a", "b")] * 5)
    assert run("chat", "--input", "a.jsonl") == 0
    before = Path("data/chat/chat.json").stat().st_mtime_ns
    assert run("chat", "--input", "a.jsonl") == 0
    assert "already prepared from the same input" in capsys.readouterr().out
    assert Path("data/chat/chat.json").stat().st_mtime_ns == before
    _write("a.jsonl", [say("a", "b")] * 6)
    assert "--force replaces it" in refused("chat", "--input", "a.jsonl")
    assert run("chat", "--input", "a.jsonl", "--force") == 0
    assert len(open_chat("data/chat").train) + len(open_chat("data/chat").val) == 6
    assert "holds chat (chat.json); choose another --out for tokens" in refused(
        "mine", "--input", "a.jsonl", "--out", "data/chat"
    )


REFUSED = {
    "no_input": (["chat"], "no corpus chat; "),
    "published": (["shakespeare_char", "--format", "chat", "--input", "a.jsonl"], "choose another name for yours"),
    "flag": (["chat", "--input", "a.jsonl", "--tokenizer", "gpt2"], "--tokenizer=gpt2 is not for chat as chat"),
    "one": (["chat", "--input", "one.jsonl"], "--input has 1 conversations to train on, and 0 that are left out"),
    "none": (
        ["chat", "--input", "none.jsonl"],
        "--input has 0 conversations to train on, and 1 that are left out (none.jsonl:1: messages is empty",
    ),
    "text": (["chat", "--input", "a.txt"], "--input a.txt is text, not .jsonl or .json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    _write("a.jsonl", [say("a", "b")] * 5)
    _write("one.jsonl", [say("a", "b")])
    _write("none.jsonl", [{"messages": []}])
    Path("a.txt").write_text("User: hello\n")
    args, message = REFUSED[name]
    assert message in refused(*args)
    assert not Path("data").exists() or not any(Path("data").iterdir())


DAMAGE = {
    "no_file": (lambda d: (d / "val.jsonl").unlink(), "val.jsonl is missing, and chat.json names it as val"),
    "changed": (lambda d: (d / "val.jsonl").write_text("{}\n"), "chat.json says "),
    "no_manifest": (lambda d: (d / "chat.json").unlink(), "`jaxgpt prepare chat --input FILES` writes one"),
    "no_json": (lambda d: (d / "chat.json").write_text("{"), "chat.json is not JSON"),
    "format": (lambda d: (d / "chat.json").write_text('{"format": 2}'), "chat.json is not of format 1"),
    "leaves": (
        lambda d: (d / "chat.json").write_text((d / "chat.json").read_text().replace("val.jsonl", "../x")),
        "describes no val.jsonl",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_directories_are_refused(name):
    _write("a.jsonl", [say("a", "b")] * 5)
    assert run("chat", "--input", "a.jsonl") == 0
    damage, message = DAMAGE[name]
    damage(Path("data/chat"))
    with pytest.raises(InputError) as error:
        open_chat("data/chat")
    assert message in str(error.value) and "\n" not in str(error.value)

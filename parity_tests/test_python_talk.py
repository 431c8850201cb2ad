"""Conversations that are always available: made of documentation, the same each time, none in both splits."""

import json

from jaxgpt.data.pydocs import python_docs
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.tasks import python_talk
from jaxgpt.tasks.mixtures import Sources
from jaxgpt.tasks.sums import sums
from jaxgpt.tasks.task import check_messages

DOCUMENTS = [f"lib.f{i}\n\nReturn {i} of {i}.\nThen more.\n\nAnd more." for i in range(700)]
DOCUMENTS[5:5] = ["Operators\n\n" + "long " * 30 + ".", "two words\n\nA sentence.", "lib.empty\n\nNo."]


def test_chat_cpu_is_five_hundred_conversations(tmp_path, monkeypatch):
    monkeypatch.setattr(python_talk, "python_docs", lambda stdlib: DOCUMENTS)
    python_talk._facts.cache_clear()
    assert prepare(["chat", "--mixture", "chat_cpu", "--out", str(tmp_path / "chat")]) == 0
    lines = [(tmp_path / "chat" / f"{split}.jsonl").read_text().splitlines() for split in ("train", "val")]
    assert list(map(len, lines)) == [500, 100]
    messages = [[json.loads(line)["messages"] for line in split] for split in lines]
    talk = [m for m in messages[0] if isinstance(m[1]["content"], str)]
    assert len(talk) == 460 and all(check_messages(m) for m in talk)
    answers = {m[1]["content"] for m in talk}
    assert "Return 0 of 0." in answers and "No." not in answers and max(map(len, answers)) <= python_talk.MAX_CHARS
    questions = [{m[0]["content"] for m in split} for split in messages]
    assert len(questions[0]) == 500 and len(questions[1]) == 100 and not questions[0] & questions[1]
    python_talk._facts.cache_clear()


def test_answers_are_sentences_of_docstrings(tmp_path):
    (tmp_path / "mod.py").write_text('"""Tools for mornings. Rarely used, and never at noon at all."""\n')
    assert python_docs(tmp_path) == ["mod\n\nTools for mornings. Rarely used, and never at noon at all."]
    assert python_talk.identity()[0] == python_talk.identity()[0] and len(python_talk.identity()) == 50


def test_views_of_made_tasks_keep_their_split():
    sources = Sources()
    train, test = sources.task("sums", 5), sources.task("sums-test", 5)
    assert [train[i] for i in range(5)] == [sums("train")[i] for i in range(5)] and len(test) == 5
    assert [test[i] for i in range(5)] == [sums("test")[i] for i in range(5)]

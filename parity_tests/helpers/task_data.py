"""The chat data for tests, and a byte tokenizer of nanochat's nine special tokens to compare digests with."""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from parity_tests.conftest import TEST_DATA

CHAT = TEST_DATA / "chat"
_IDS = {"user": (257, 258), "assistant": (259, 260), "python": (261, 262), "python_output": (263, 264)}
BOS = 256


def chat_file(name: str) -> Path:
    path = CHAT / name
    if not path.is_file():
        pytest.skip(f"no {path}; JAXGPT_TEST_DATA names the directory that holds it")
    return path


def chat_rows(name: str) -> list[Any]:
    content = chat_file(name).read_bytes()
    content = gzip.decompress(content) if name.endswith(".gz") else content
    return [json.loads(line) for line in content.decode().splitlines()]


def words_file(directory: Path) -> Path:
    """words_alpha.txt, unpacked."""
    with zipfile.ZipFile(chat_file("words/words_alpha.zip")) as packed:
        (directory / "words_alpha.txt").write_bytes(packed.read(packed.namelist()[0]))
    return directory / "words_alpha.txt"


def render_bytes(conversation: Any) -> tuple[list[int], list[int]]:
    """(ids, mask) of user and assistant messages, as nanochat renders them, without a limit."""
    ids, mask = [BOS], [0]

    def add(tokens, trained):
        ids.extend(tokens)
        mask.extend([trained] * len(tokens))

    for message in conversation["messages"]:
        begin, end = _IDS[message["role"]]
        is_answer = int(message["role"] == "assistant")
        add([begin], 0)
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            text, marks = list(part["text"].encode()), _IDS.get(part["type"])
            trained = is_answer * (part["type"] != "python_output")
            add([marks[0], *text, marks[1]] if marks else text, trained)
        add([end], is_answer)
    return ids, mask


def json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()

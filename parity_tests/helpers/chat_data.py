"""Real conversations for tests: FastChat's 500 and GSM8K's problems, and the mixture that nanochat's digests are of."""

import hashlib
import json
import random
import re

import numpy as np
import pytest

from jaxgpt.config.steps import PlannedStep
from jaxgpt.data.tokenizer import BPETokenizer
from parity_tests.conftest import TEST_DATA

CHAT_DATA = TEST_DATA / "chat"
BYTES = BPETokenizer([bytes([i]) for i in range(256)])
"""Bytes 0 to 255, and nanochat's nine control tokens from 256 on."""


def say(*texts, system=None):
    """A conversation of these texts, the user's first."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": system}] * (system is not None) + messages}


def digest(value):
    """SHA-256 of compact JSON."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def _require(path):
    if not path.is_file():
        pytest.skip(f"no {path}; JAXGPT_TEST_DATA names the directory that holds chat/")
    return path


def fastchat():
    """500 conversations in file order."""
    path = _require(CHAT_DATA / "conversations" / "fastchat_dummy_conversation.json")
    return [say(*(turn["value"] for turn in entry["conversations"])) for entry in json.loads(path.read_text())]


def gsm8k(split):
    """Problems in the hub's shuffled order, answers split at <<expression=result>>."""
    path = _require(CHAT_DATA / "gsm8k" / f"{split}.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [_problem(rows[i]) for i in np.random.default_rng(42).permutation(len(rows))]


def _problem(row):
    parts = []
    for i, piece in enumerate(re.split(r"<<([^>]+)>>", row["answer"])):
        if i % 2:
            expression, _, result = piece.rpartition("=")
            parts += [{"type": "python", "text": expression}, {"type": "python_output", "text": result}]
        else:
            parts.append({"type": "text", "text": piece})
    return say(row["question"], parts)


def mixture():
    """FastChat, GSM8K, FastChat: 8,473 conversations, shuffled once as nanochat's TaskMixture does."""
    tasks = (fastchat(), gsm8k("train"), fastchat())
    places = [(task, row) for task, rows in enumerate(tasks) for row in range(len(rows))]
    random.Random(42).shuffle(places)
    return [tasks[task][row] for task, row in places]


def planned(n_rows, seq_len, n_micro=1):
    """A step of so many microbatches of so many rows."""
    return PlannedStep(0, 0, 0, 0, n_micro, n_rows, seq_len, {})

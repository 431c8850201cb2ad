"""Two tasks made from a list of words: spell a word, and count a letter in it. Both teach what tokens hide.

Example i is made from a seed alone, so a task has any size and needs no file but the words. The draws are nanochat's,
one for one, so the words and letters are too; the wording of questions and answers is ours.

Seeds: nanochat gave the test example i the seed -(i + 1). Python's generator ignores the sign, so it was the training
example i + 1. Here the test starts at 10,000,000, as nanochat does since December 2025.

Reference: nanochat c6abcdf, tasks/spellingbee.py; words: https://github.com/dwyl/english-words (Unlicense).
"""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxgpt.data.download import download
from jaxgpt.errors import InputError
from jaxgpt.files import read_bounded
from jaxgpt.tasks.calculator import calculate
from jaxgpt.tasks.gsm8k import is_number_right
from jaxgpt.tasks.task import SEED, Conversation, Task

Split = Literal["train", "test"]
FIRST_SEED = {"train": 0, "test": 10_000_000}
WORDS_URL = "https://raw.githubusercontent.com/dwyl/english-words/master/words_alpha.txt"
LIMIT_BYTES = 32 << 20
LETTERS = "abcdefghijklmnopqrstuvwxyz"
QUOTES = ("", "'", '"')
QUESTIONS = (
    "How many {letter} are in {word}",
    "How many {letter} are there in {word}",
    "How many {letter} does {word} have",
    "How many {letter} does {word} contain",
    "How many times is {letter} in {word}",
    "How many times does {letter} occur in {word}",
    "How many times does {letter} appear in {word}",
    "How many times do you see {letter} in {word}",
    "How many times does {word} use {letter}",
    "How many of the letters in {word} are {letter}",
    "How often does {letter} occur in {word}",
    "How often is {letter} used in {word}",
    "How often do you find {letter} in {word}",
    "Count {letter} in {word}",
    "Count the {letter} in {word}",
    "Count how often {letter} occurs in {word}",
    "Count every {letter} of {word}",
    "Count the letter {letter} in the word {word}",
    "Please count {letter} in {word}",
    "Can you count the {letter} in {word}",
    "Could you count how many {letter} are in {word}",
    "Tell me how many {letter} are in {word}",
    "Tell me how often {letter} appears in {word}",
    "Give me the number of {letter} in {word}",
    "Find the number of {letter} in {word}",
    "What is the count of {letter} in {word}",
    "What is the number of {letter} in {word}",
    "What number of {letter} does {word} have",
    "In {word}, how many {letter} are there",
    "In the word {word}, how often is the letter {letter}",
    "¿Cuántas {letter} hay en {word}",
    "¿Cuántas veces aparece {letter} en {word}",
    "¿Cuántas {letter} tiene {word}",
    "Cuenta las {letter} de {word}",
    "{word}里有几个{letter}",
    "{word}中有多少个{letter}",
    "{letter}在{word}里出现几次",
    "数一数{word}里的{letter}",
    "{word}에 {letter}가 몇 개 있나요",
    "{word}에서 {letter}는 몇 번 나오나요",
    "{word}에 있는 {letter}의 개수는",
    "{word}의 {letter}를 세어 주세요",
    "Combien de {letter} y a-t-il dans {word}",
    "Combien de fois trouve-t-on {letter} dans {word}",
    "Compte les {letter} dans {word}",
    "Wie viele {letter} sind in {word}",
    "Wie oft kommt {letter} in {word} vor",
    "Zähle die {letter} in {word}",
    "{word}に{letter}はいくつありますか",
    "{word}の中に{letter}は何回出てきますか",
    "{word}の{letter}を数えてください",
)
"""30 English, 4 Spanish, 4 Chinese, 4 Korean, 3 French, 3 German, 3 Japanese."""


class Examples(Sequence[int]):
    """The seeds of a split: as many as the task is large."""

    def __init__(self, size: int, split: Split):
        if size < 1:
            raise InputError(f"size={size} of a spelling task is not above 0; choose a larger one")
        if size > FIRST_SEED["test"]:
            raise InputError(f"size={size} of a spelling task is above {FIRST_SEED['test']}, where the test begins")
        self._seeds = range(FIRST_SEED[split], FIRST_SEED[split] + size)

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, index: Any) -> Any:
        return self._seeds[index]


def spelling_bee(words: Sequence[str], size: int, split: Split) -> Task:
    """How often a letter occurs in a word, counted by hand and by Python."""
    return Task("SpellingBee", Examples(size, split), _count_from(words), kind="generated", judge=is_number_right)


def simple_spelling(words: Sequence[str], size: int, split: Split) -> Task:
    """The letters of a word. The words are shuffled first, so that the two tasks differ."""
    shuffled = list(words)
    random.Random(SEED).shuffle(shuffled)

    def converse(seed: int) -> Conversation:
        word = random.Random(seed).choice(shuffled)
        messages = [
            {"role": "user", "content": f"Spell the word: {word}"},
            {"role": "assistant", "content": spell(word)},
        ]
        return {"messages": messages}

    return Task("SimpleSpelling", Examples(size, split), converse)


def spell(word: str) -> str:
    return f"{word}:{','.join(word)}"


def _count_from(words: Sequence[str]) -> Callable[[int], Conversation]:
    def converse(seed: int) -> Conversation:
        draw = random.Random(seed)
        word = draw.choice(words)
        letter = draw.choice(word) if draw.random() < 0.9 else draw.choice(LETTERS)
        question = draw.choice(QUESTIONS)
        question = question.lower() if draw.random() < 0.3 else question
        letter_quote, word_quote = draw.choice(QUOTES), draw.choice(QUOTES)
        text = question.format(letter=f"{letter_quote}{letter}{letter_quote}", word=f"{word_quote}{word}{word_quote}")
        text += "?" if draw.random() < 0.5 else ""
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": count_letter(word, letter)}]
        return {"messages": messages}

    return converse


def count_letter(word: str, letter: str) -> list[dict[str, str]]:
    """The answer in parts. A colon stands before each letter, so that it is a token without a space.

    The calculator refuses some words, such as "profile", for what they contain; no output follows its call then.
    """
    lines, n_found = [], 0
    for position, found in enumerate(word, 1):
        n_found += found == letter
        lines.append(f"{position}:{found}" + (f" hit! count={n_found}" if found == letter else ""))
    by_hand = (
        f"Let me count '{letter}' in '{word}' by hand first. The word, letter by letter:\n{spell(word)}\n\n"
        f"Now I go through them and look for '{letter}':\n" + "\n".join(lines) + f"\n\nThat makes {n_found}."
    )
    call = f"'{word}'.count('{letter}')"
    output = calculate(call)
    return [
        {"type": "text", "text": by_hand},
        {"type": "text", "text": "\n\nI check this with Python:\n\n"},
        {"type": "python", "text": call},
        *([{"type": "python_output", "text": output}] if output is not None else []),
        {"type": "text", "text": f"\n\nThe result is {n_found}.\n\n#### {n_found}"},
    ]


def read_words(path: Path) -> list[str]:
    """The words of a file, one a line.

    Raises:
      InputError: the file cannot be read, or a line is not a word of a-z.
    """
    try:
        words = read_bounded(path, LIMIT_BYTES).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"words {path} cannot be read ({error}); give a file with a word a line, or none") from error
    if not words:
        raise InputError(f"words {path} has no word; fetch it again")
    for word in words:
        if not re.fullmatch("[a-z]+", word):
            raise InputError(f"words {path}: {word[:40]!r} is not a word of a-z; remove it")
    return words


def fetch_words(directory: Path) -> list[str]:
    """The words of dwyl/english-words, fetched once into a directory.

    Raises:
      InputError: they cannot be fetched, or are not a list of words.
    """
    path = directory / "words_alpha.txt"
    if not path.is_file():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            download(WORDS_URL, path, limit_bytes=LIMIT_BYTES, check=_check_words)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error}); choose another directory") from error
    return read_words(path)


def _check_words(part: Path) -> None:
    read_words(part)

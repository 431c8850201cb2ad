"""The chat in a terminal of its own: lines, commands, arrow keys, Ctrl-C and Ctrl-D; and the verb on a pipe."""

import io
import re
import sys

import pytest

from jaxgpt import sample
from jaxgpt.chat.__main__ import main
from jaxgpt.config import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.inference.trained import open_run
from parity_tests.helpers.chat_data import BYTES
from parity_tests.helpers.saved_runs import save_run
from parity_tests.helpers.tty import CTRL_C, CTRL_D, UP, Tty


@pytest.fixture
def tty():
    tty = Tty("-m", "parity_tests.helpers.scripted_chat", "tty")
    yield tty
    if tty.process.poll() is None:
        tty.process.kill()
        tty.process.wait()


def test_a_dialogue_in_a_terminal(tty, tmp_path):
    tty.wait_for("> ")
    tty.type("say \N{GRINNING FACE} na\N{LATIN SMALL LETTER I WITH DIAERESIS}f\n")
    tty.wait_for("\n\N{GRINNING FACE} na\N{LATIN SMALL LETTER I WITH DIAERESIS}f")
    tty.wait_for("> ")
    tty.type("sum 12*3\n")
    tty.wait_for("\n[12*3 = 36]\n> ")

    tty.type("slow 500\n")
    tty.wait_for("\n0 1 2 ")
    tty.type(CTRL_C)
    tty.wait_for("(stopped)\n> ")
    tty.type(UP + UP + "\n")
    tty.wait_for("\n[12*3 = 36]\n")
    tty.wait_for("> ")
    tty.type("half a line")
    tty.wait_for("half a line")
    tty.press_until(CTRL_C, "(Ctrl-D ends)\n> ")

    path = tmp_path / "talk.json"
    for typed, answer in (
        ("/temp 0.5", "temperature 0.5"),
        ("/temp warm", "error: /temp=warm is not a number"),
        ("/temp -1", "error: temperature=-1.0 is not a number from 0"),
        ("/top_k 7", "top_k 7"),
        ("/top_k 1000", "error: top_k=1000 is above the vocabulary of 265"),
        ("/tmp 3", "error: /tmp is no command; did you mean /temp?"),
        ("/help", "/system TEXT"),
        ("/system be brief", "set, from the first message on"),
        (f"/save {path}", f"4 turns in {path}"),
        ("/clear", "forgotten"),
        ("/save x", "error: nothing was said yet"),
        (f"/load {path}", f"4 turns from {path}"),
        (f"/load {tmp_path}", "error: " + f"{tmp_path}: it is a directory"),
        ("say " + "y" * 50, "(the oldest 4 turns are left out: the context holds 120 tokens)"),
        ("//clear now", "now"),
        ("red x", "\\x1b[31mx"),
    ):
        tty.type(f"{typed}\n")
        tty.wait_for(answer)
        tty.wait_for("> ")
    tty.type(CTRL_D)
    assert tty.close() == 0


# The verb


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("chat") / "base"
    save_run(run, GPT2Config(seq_len=64, n_layer=1, n_head=2, n_embd=32, vocab_size=BYTES.vocab_size), BYTES)
    return str(run)


def pipe(text, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def test_a_base_model_completes_each_line_of_a_pipe(run, monkeypatch, capsys):
    pipe(b"To be\n\nor not", monkeypatch)
    assert main(["--run", run, "--temperature=0", "--max-tokens=9", "--seed=1"]) == 0
    out, errors = capsys.readouterr()
    engine, texts = open_run(run).engine(), []
    for prompt in ("To be", "or not"):
        ids = BYTES.encode_prompt(prompt)
        steps = engine.generate(ids, max_tokens=9, temperature=0, stop_ids=BYTES.stop_ids())
        text = BYTES.decode(i for (i,) in steps if i is not None and i not in BYTES.stop_ids())
        texts.append(text if text.endswith("\n") else text + "\n")
    assert out == "".join(texts)
    assert "step 1: completes what you type; float32" in errors


def test_a_draft_changes_no_greedy_text(run, monkeypatch, capsys):
    """In `jaxgpt chat`, and in `jaxgpt sample`."""
    asked = ["--run", run, "--temperature=0", "--max-tokens=40"]
    texts = []
    for drafts in ([], ["--draft", "lookup"]):
        assert main([*asked, "-p", "To be, to be", *drafts]) == 0
        texts.append(capsys.readouterr().out)
        assert sample.main([*asked, "--prompt", "To be, to be", *drafts]) == 0
        out, errors = capsys.readouterr()
        assert out == "To be, to be" + texts[-1]
        assert ("drafted tokens accepted" in errors) == bool(drafts)
    assert texts[0] == texts[1]


def test_one_answer_then_the_end(run, monkeypatch, capsys):
    """--prompt -, and the same as an argument; a conversation where the mode says so."""
    asked = ["--run", run, "--mode=chat", "--seed=5", "--max-tokens=8"]
    pipe(b"Hello\nthere\n", monkeypatch)
    assert main([*asked, "-p", "-"]) == 0
    first = capsys.readouterr()
    assert main([*asked, "-p", "Hello\nthere"]) == 0
    assert capsys.readouterr() == first and first.out.endswith("\n") and "converses" in first.err


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--system=x"], b"", "--system is for a conversation, and this model completes texts"),
        ([], b"\xff\n", "stdin is not utf-8 at byte 0"),
        (["-p", "-"], b"\xff", "the prompt on stdin is not UTF-8 at byte 0"),
        (["--mode=chat"], b"x" * 80, "the message has 84 tokens, the context 64; shorten it"),
        (["--draft=nowhere"], b"", "--draft=nowhere: nowhere does not exist"),
        (["--draft=lookup", "--draft-tokens=0"], b"", "--draft=lookup: --draft-tokens=0 is outside [1, 16]"),
        (["--temperature=-1"], b"", "temperature=-1.0 is not a number from 0"),
    ],
    ids=["system", "bytes", "prompt", "long", "draft", "drafted", "setting"],
)
def test_what_cannot_be_answered_is_said(run, monkeypatch, arguments, text, message):
    pipe(text, monkeypatch)
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--run", run, *arguments])

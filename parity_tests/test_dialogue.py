"""A dialogue's prompts are those of training, fit the context, and survive a file; answers are shown as they come."""

import json

import pytest

from jaxgpt.chat.answer_text import AnswerText
from jaxgpt.chat.dialogue import Dialogue, Turn, answer_ids, answer_parts
from jaxgpt.chat.talk import Sampling, Talk
from jaxgpt.config import GPT2Config
from jaxgpt.data.conversations import Conversation, Part, render_for_completion
from jaxgpt.errors import InputError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.rows import CHUNK_TOKENS
from jaxgpt.models import init_params
from parity_tests.helpers.chat_data import BYTES, say
from parity_tests.helpers.scripted_chat import N_POSITIONS, make_talk

PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = (
    BYTES.special_id(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")
)
CALL = [*b"is ", PYTHON, *b"2*3", PYTHON_END, OUTPUT, *b"6", OUTPUT_END, *"\N{SLIGHTLY SMILING FACE}".encode()]
ROOM = {"n_positions": 10**6, "n_answer": 1}


def dialogue_of(conversation):
    """Whose next question is the conversation's last one."""
    *messages, last = Conversation.read(conversation).messages
    dialogue = Dialogue(BYTES)
    if messages and messages[0].role == "system":
        dialogue.system = messages.pop(0).text
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        dialogue.turns.append(Turn(question.text, tuple(answer_ids(answer.parts, BYTES))))
    return dialogue, last.text


@pytest.mark.parametrize(
    "conversation",
    [
        say("hi"),
        say("u", "a", "v", system="S"),
        say("u", "", "<|bos|>", "\N{LATIN SMALL LETTER E WITH ACUTE}", "w"),
        say("q", [{"type": "text", "text": "is "}, {"type": "python", "text": "1+1"},
                  {"type": "python_output", "text": "2"}], "v"),
    ],
    ids=["first", "system", "texts", "tool"],
)  # fmt: skip
def test_a_prompt_is_what_training_renders(conversation):
    dialogue, question = dialogue_of(conversation)
    asked = {"messages": [*conversation["messages"], {"role": "assistant", "content": ""}]}
    assert dialogue.prompt(question, **ROOM) == (render_for_completion(asked, BYTES, None).tolist(), 0)


def test_the_oldest_turns_are_left_out_whole_and_the_system_text_stays():
    texts = [f"{'question' if i % 2 else 'answer'} {i}" for i in range(13)]
    dialogue, question = dialogue_of(say(*texts, system="S"))
    n_all, counts = len(dialogue.prompt(question, **ROOM).ids), set()
    shortest = len(dialogue_of(say(texts[-1], system="S"))[0].prompt(texts[-1], **ROOM).ids)
    for n_positions in range(shortest + 1, n_all + 20):
        ids, n_left_out = dialogue.prompt(question, n_positions=n_positions, n_answer=10)
        kept, _ = dialogue_of(say(*texts[2 * n_left_out :], system="S"))
        kept.system = "S"
        assert ids == kept.prompt(question, **ROOM).ids and len(dialogue.turns) == 6
        assert len(ids) + 10 <= n_positions or n_left_out == 6
        if n_left_out:
            dropped = dialogue_of(say(*texts[2 * n_left_out - 2 :], system="S"))[0]
            assert len(dropped.prompt(question, **ROOM).ids) + 10 > n_positions, "a turn that fits is kept"
        counts.add(n_left_out)
    assert counts == {*range(7)}
    with pytest.raises(InputError, match=f"have {shortest} tokens, the context {shortest}; shorten it"):
        dialogue.prompt(question, n_positions=shortest, n_answer=10)


def test_a_file_gives_the_dialogue_back(tmp_path):
    dialogue = Dialogue(BYTES)
    dialogue.system, dialogue.turns = "S", [Turn("q \u2028", tuple(CALL)), Turn("v", (*b"yes",))]
    dialogue.save(tmp_path / "talk.json")
    loaded = Dialogue(BYTES)
    loaded.load(tmp_path / "talk.json")
    assert (loaded.system, loaded.turns) == (dialogue.system, dialogue.turns)
    value = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [message["role"] for message in value["messages"]] == ["system", *("user", "assistant") * 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"x"', "messages is of type str, not a list"),
        (json.dumps(say("q")), "ends with a question"),
        (json.dumps(say("q", "a", "b", system=3)), "is of type int, not a string"),
    ],
    ids=["cut", "deep", "string", "question", "type"],
)
def test_a_file_that_is_none_changes_nothing(tmp_path, text, message):
    (tmp_path / "talk.json").write_text(text)
    dialogue = Dialogue(BYTES)
    dialogue.turns = [Turn("q", (*b"a",))]
    with pytest.raises(InputError, match=message):
        dialogue.load(tmp_path / "talk.json")
    assert dialogue.turns == [Turn("q", (*b"a",))]


def test_the_parts_of_an_answer():
    parts = answer_parts(CALL, BYTES)
    assert [part.kind for part in parts] == ["text", "python", "python_output", "text"]
    assert answer_ids(parts, BYTES) == CALL
    assert answer_parts([], BYTES) == (Part("text", ""),)
    assert answer_parts([PYTHON, *b"1"], BYTES) == (Part("python", "1"),)


@pytest.mark.parametrize(
    ("ids", "pieces"),
    [
        (CALL, ["i", "s", " ", "[", "2", "*", "3", "", " = ", "6", "]", "", "", "", "\N{SLIGHTLY SMILING FACE}", ""]),
        ([PYTHON, *b"x", PYTHON_END, *b"y"], ["[", "x", "", "]y", ""]),
        ([PYTHON, *b"1", PYTHON, *b"2", PYTHON_END], ["[", "1", "[", "2", "", "]"]),
        ([*"\N{LATIN SMALL LETTER E WITH ACUTE}".encode()[:1], PYTHON], ["", "\ufffd[", "]"]),
    ],
    ids=["call", "no value", "again", "half"],
)
def test_an_answer_is_shown_in_whole_characters_with_its_calls(ids, pieces):
    shown = AnswerText(BYTES)
    assert [*map(shown.feed, ids), shown.finish()] == pieces


# Turns


def test_a_turn_says_what_was_left_out_and_what_was_cut():
    talk, row = make_talk()
    assert "".join(talk.answer("say one")) == "one" and talk.notes == []
    assert "".join(talk.answer("sum 2*3")) == "[2*3 = 6]" and talk.notes == []
    assert "".join(talk.answer("say " + "x" * 40)) == "x" * 40
    assert talk.notes == [f"the oldest 2 turns are left out: the context holds {N_POSITIONS} tokens"]
    assert "".join(talk.answer("say " + "y" * 61)) == "y" * 52
    assert talk.notes[1:] == [f"the context of {N_POSITIONS} tokens is full"]
    talk.set(max_tokens=3)
    assert "".join(talk.answer("say four")) == "fou" and talk.notes[-1] == "ended at --max-tokens=3"
    assert [request.sample for request in row.requests] == [0, 1, 2, 3, 4], "equal questions get answers of their own"
    with pytest.raises(InputError, match="the message has 304 tokens, the context 120"):
        next(talk.answer("z" * 300))
    assert talk.dialogue is not None and len(talk.dialogue.turns) == 5


def test_a_stopped_answer_is_kept_as_far_as_it_came():
    talk, _ = make_talk()
    pieces = talk.answer("slow 9")
    assert [next(pieces) for _ in range(4)] == ["0", " ", "1", " "]
    talk.stop()
    assert [*pieces] == [] and talk.notes == ["stopped"]
    assert talk.dialogue is not None and talk.dialogue.turns == [Turn("slow 9", (*b"0 1 ",))]


def test_the_second_turn_computes_only_what_is_new_and_is_the_same():
    """Against a talk that begins with the second turn."""
    config = GPT2Config(seq_len=256, n_layer=1, n_head=2, n_embd=32, vocab_size=BYTES.vocab_size)
    engine = Engine(config, init_params(config, seed=1), dtype="float32")
    sampling = Sampling(max_tokens=30, temperature=1.0, top_k=0, top_p=1.0, seed=3)

    def open_talk():
        rows = engine.rows([None])
        return Talk(rows, BYTES, sampling, n_positions=256, converses=True), rows

    talk, rows = open_talk()
    first = "".join(talk.answer("a question of many words " * 5))
    n_first = rows.n_prefilled_tokens
    second = "".join(talk.answer("why?"))
    assert talk.dialogue is not None
    n_new = rows.n_prefilled_tokens - n_first
    assert (
        first and second and n_first > 125 and n_new <= len("why?") + 6 + 2 * CHUNK_TOKENS
    )  # of the prompt, and settled

    fresh, _ = open_talk()
    "".join(fresh.answer("x"))  # so that the samples have the same numbers
    assert fresh.dialogue is not None
    fresh.dialogue.turns[:] = talk.dialogue.turns[:1]
    assert "".join(fresh.answer("why?")) == second

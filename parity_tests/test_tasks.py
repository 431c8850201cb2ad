"""Tasks: rows in nanochat's order, its prompts, and its rules for answers, on the data themselves."""

import hashlib
import json
import re
from dataclasses import replace

import pytest

from jaxgpt.errors import InputError
from jaxgpt.tasks import arc, gsm8k, humaneval, mmlu, smoltalk
from jaxgpt.tasks.calculator import calculate
from jaxgpt.tasks.multiple_choice import ask
from jaxgpt.tasks.own import own_conversations
from jaxgpt.tasks.task import Chain, Mixture, Shuffled, Task, check_messages, shuffled_order
from parity_tests.helpers.task_data import chat_rows, json_digest, render_bytes

FIRST_ROWS = {
    smoltalk.SPLITS["train"]: [21697, 61600, 155055, 325090, 320249, 306258],
    smoltalk.SPLITS["test"]: [1356, 12407, 12885, 5041, 13554, 10976],
    mmlu.SPLITS["auxiliary_train"]: [83367, 7161, 20507, 62180, 87154, 97839],
    mmlu.SPLITS["test"]: [1469, 122, 5555, 7550, 10165, 13363],
    arc.SPLITS["ARC-Easy", "test"]: [658, 1619, 1811, 47, 1494, 1273],
    arc.SPLITS["ARC-Challenge", "test"]: [771, 1124, 636, 340, 696, 831],
    gsm8k.SPLITS["train"]: [3082, 2184, 5897, 2437, 6330, 819],
    gsm8k.SPLITS["test"]: [30, 754, 429, 1010, 1284, 953],
    humaneval.SPLITS["test"]: [52, 134, 51, 66, 147, 101],
}


def count(n: int) -> Task:
    return Task(f"count {n}", range(n), lambda row: {"messages": [{"role": "user", "content": str(row)}]})


def content(conversation) -> str:
    return conversation["messages"][-1]["content"]


@pytest.mark.parametrize("split", FIRST_ROWS, ids=str)
def test_rows_of_a_data_set_are_shuffled_as_nanochat_does(split):
    assert shuffled_order(split.n_rows)[:6].tolist() == FIRST_ROWS[split]


def test_a_view_counts_its_rows_from_start_by_step():
    assert [content(count(10).view(1, 8, 3)[i]) for i in range(3)] == ["1", "4", "7"]
    assert [len(count(10).view(*view)) for view in ((0, None, 1), (1, 8, 3), (1, 7, 3), (5, 5, 1))] == [10, 3, 2, 0]
    with pytest.raises(IndexError):
        count(10).view(1, 8, 3)[3]
    with pytest.raises(InputError, match="rows 0 to 11 in steps of 1 are not among its 10 rows"):
        count(10).view(0, 11)


def test_a_mixture_is_in_nanochats_order():
    mixture = Mixture([count(3), count(5)])
    pairs = [(1, 0), (1, 1), (1, 3), (1, 4), (0, 2), (1, 2), (0, 0), (0, 1)]
    assert [mixture.pair(i) for i in range(8)] == pairs
    assert [content(mixture[i]) for i in range(8)] == [str(row) for _, row in pairs]


def test_a_task_that_is_given_twice_is_seen_twice():
    mixture, twice = Mixture([count(3), count(5), count(3)]), Chain([count(2), count(3), count(2)])
    assert sorted(content(mixture[i]) for i in range(11)) == sorted("01234012012")
    assert "".join(content(twice[i]) for i in range(7)) == "0101201"
    with pytest.raises(IndexError):
        twice[7]


def test_a_mixture_of_nothing_is_refused():
    for tasks in ([], [count(3).view(0, 0)]):
        with pytest.raises(InputError, match="mixture of 0 conversations"):
            Mixture(tasks)


# Prompts


def test_a_multiple_choice_prompt_has_nanochats_bytes():
    row = chat_rows("eval_bundle/eval_data/world_knowledge/arc_challenge.jsonl")[0]
    text = ask(row["query"].removeprefix("Question: "), "ABCD", row["choices"])
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "ce484b6e25f6adfb16bdd896545ab38419aa79fe755c620aaef801268dab59ad"
    )


def test_letters_of_arc_are_the_rows_and_of_mmlu_a_to_d():
    rows = [{"question": "Q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"}]
    task = arc.arc("ARC-Easy", rows)
    assert task[0]["letters"] == ("1", "2", "3") and content(task[0]) == "2"
    assert task.judge(task[0], "2") and not task.judge(task[0], "1")
    row = {"question": "Q", "choices": list("wxyz"), "answer": 3, "subject": "law"}
    for rows in ([row], [{"train": row}]):
        task = mmlu.mmlu(rows)
        assert task[0]["letters"] == tuple("ABCD") and content(task[0]) == "D" and task[0]["subject"] == "law"
        assert "- z=D\n\nRespond" in task[0]["messages"][0]["content"]
    with pytest.raises(InputError, match="MMLU, row 0: 3 choices, not 4"):
        mmlu.mmlu([row | {"choices": list("wxy")}])[0]
    with pytest.raises(InputError, match="answer 4 is not 0 to 3"):
        mmlu.mmlu([row | {"answer": 4}])[0]


def test_gsm8k_renders_to_nanochats_tokens():
    task = gsm8k.gsm8k(chat_rows("gsm8k/train.jsonl"))
    pairs = [render_bytes(task[i]) for i in range(100)]
    assert json_digest(pairs) == "fa17d865c4a34d1759519072e44744c19e59adbd9f58837a539d6f93828336e5"
    assert (sum(len(ids) for ids, _ in pairs), sum(sum(mask) for _, mask in pairs)) == (51_236, 26_305)


def test_a_call_without_a_result_has_an_empty_output():
    row = {"question": "q", "answer": "a <<1+1>>2 <<2=2=3>>\n#### 3"}
    parts = gsm8k.converse(row)["messages"][1]["content"]
    assert [part["text"] for part in parts] == ["a ", "1+1", "", "2 ", "2=2", "3", "\n#### 3"]


# Answers


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,000", "1000"), ("#### 5.", "5."), ("#### 10.0", "10.0"), ("#### $5", None), ("####5", None),
     ("#### 1\n#### 2", "1"), ("so #### -3 apples", "-3"), ("5", None)],
)  # fmt: skip
def test_the_number_is_the_first_after_four_signs(text, number):
    assert gsm8k.find_number(text) == number


def test_numbers_are_compared_as_text():
    conversation = gsm8k.converse({"question": "q", "answer": "#### 1,000"})
    judged = {text: gsm8k.is_number_right(conversation, f"#### {text}") for text in ("1000", "1,000", "1000.0", "100")}
    assert judged == {"1000": True, "1,000": True, "1000.0": False, "100": False}
    with pytest.raises(InputError, match="does not end with"):
        gsm8k.is_number_right(gsm8k.converse({"question": "q", "answer": "5"}), "#### 5")


def test_every_reference_of_gsm8k_is_right_also_with_our_calculators_outputs():
    n_rows = 0
    for split in ("train", "test"):
        task = gsm8k.gsm8k(chat_rows(f"gsm8k/{split}.jsonl"))
        for i in range(len(task)):
            texts, called = [], []
            for part in task[i]["messages"][1]["content"]:
                texts.append(part["text"])
                output = calculate(called[-1]) if part["type"] == "python_output" else part["text"]
                assert output is not None
                called.append(output)
            assert task.judge(task[i], "".join(texts)) and task.judge(task[i], "".join(called))
            n_rows += 1
    assert n_rows == 8_792


def test_code_is_the_first_fenced_block():
    assert humaneval.find_code("so:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1"
    assert humaneval.find_code("```\nx = 1\n```") == "x = 1"
    assert humaneval.find_code("  x = 1\n") == "x = 1"
    assert humaneval.find_imports("# c\nimport a\n\nfrom b import c\n\ndef f():\n    import d\n") == (
        "import a\nfrom b import c"
    )


# Conversations as they are

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "fault"),
    [(None, "not a list"), ([], "not a list"), ([USER], "no answer"), ([USER, USER], "message 1 has role 'user'"),
     ([ANSWER, USER], "message 0 has role"), ([USER, {"role": "assistant", "content": [1]}], "message 1 has no text"),
     ([USER, ANSWER, {"role": "system", "content": "s"}], "message 2 has role"),
     ([USER, "x"], "message 1 has no text")],
    ids=["none", "empty", "user", "twice", "answer_first", "parts", "late_system", "no_mapping"],
)  # fmt: skip
def test_a_wrong_message_is_named(messages, fault):
    with pytest.raises(InputError, match=fault) as error:
        check_messages(messages)
    assert "\n" not in str(error.value)


def test_a_file_of_conversations_is_read_or_its_line_named(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(f"{json.dumps([USER, ANSWER])}\n\n{json.dumps({'messages': [USER, ANSWER]})}\n")
    task = own_conversations(path)
    assert len(task) == 2 and task[0] == task[1] == {"messages": [USER, ANSWER]}
    for text, fault in {
        "[1]\n": "line 1: message 0",
        f"{json.dumps([USER, ANSWER])}\n{{": "line 2 is not",
        "": "no line",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=re.escape(fault)):
            own_conversations(path)
    with pytest.raises(InputError, match="cannot be read"):
        own_conversations(tmp_path / "missing.jsonl")


def test_smoltalk_keeps_its_messages_and_rows_unchanged():
    system = {"role": "system", "content": "s"}
    rows = [{"messages": [system, USER, ANSWER]}, {"messages": [USER]}]
    task = replace(smoltalk.smoltalk(rows), rows=rows)
    task[0]["messages"][0]["content"] = "changed"
    assert task[0]["messages"] == [system, USER, ANSWER] and system["content"] == "s"
    with pytest.raises(InputError, match="SmolTalk, row 1: there is no answer"):
        task[1]
    assert [Shuffled("abc")[i] for i in range(3)] == ["abc"[i] for i in shuffled_order(3)]

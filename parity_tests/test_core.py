"""CORE's tasks, prompts, orders and scores are nanochat's: figures measured on its own code with a toy model."""

import csv
import json
import re

import numpy as np
import pytest

from jaxgpt.chat.core import TaskResult, as_json, core_table, evaluate_core
from jaxgpt.chat.core_prompts import ask, scored_tokens, write_prompts
from jaxgpt.chat.core_tasks import CORE_TASKS, Baselines, CoreItems, CoreTask, choose_tasks, core_score, read_items
from jaxgpt.chat.finished_tasks import FinishedTasks
from jaxgpt.chat.span import Span, SpanScore, score_logits
from jaxgpt.data.tokenizer import ByteTokenizer
from jaxgpt.errors import InputError
from jaxgpt.run.console import PlainConsole
from parity_tests.helpers.chat_data import BYTES, CHAT_DATA

BUNDLE = CHAT_DATA / "eval_bundle"
BY_NAME = {task.name: task for task in CORE_TASKS}
TOY_BITS = {
    "jeopardy": "0" * 20,
    "bigbench_qa_wikidata": "00000000100000000000",
    "arc_easy": "00101100000010000001",
    "arc_challenge": "00000000000010000100",
    "copa": "11001011111110000110",
    "commonsense_qa": "11100000000001000010",
    "piqa": "00100011100111111101",
    "openbook_qa": "00010000001000000100",
    "lambada_openai": "00010000000001000001",
    "winograd": "11100011000111111110",
    "winogrande": "10110011000000000101",
    "bigbench_dyck_languages": "0" * 20,
    "agi_eval_lsat_ar": "11000000000001000010",
    "bigbench_cs_algorithms": "01011100010010011011",
    "bigbench_operators": "00100000000000000000",
    "bigbench_repeat_copy_logic": "0" * 20,
    "boolq": "10011111010000100011",
    "bigbench_language_identification": "01101000010010000010",
}
"""What nanochat's code answers with `ToyModel`: 20 items of each task."""


class ToyModel:
    """Random logits by token, and 10 more for the token that followed the last three tokens when they last came."""

    max_tokens = 1 << 20

    def __init__(self):
        self.logits_VV = np.random.default_rng(0).standard_normal((265, 265))
        self.n_asked = 0

    def __call__(self, spans, on_progress=None):
        self.n_asked += len(spans)
        return [score_logits(self.run(span), span) for span in spans]

    def run(self, span):
        ids, seen, logits_TV = span.ids.tolist(), {}, np.empty((len(span.ids), 265))
        for t in range(len(ids)):
            if t >= span.start - 1:
                logits_TV[t] = self.logits_VV[ids[t]]
            key = tuple(ids[t - 2 : t + 1]) if t >= 2 else None
            if key in seen and t >= span.start - 1:
                logits_TV[t, ids[seen[key] + 1]] += 10
            if key:
                seen[key] = t
        return logits_TV


@pytest.fixture(scope="module")
def bundle():
    if not BUNDLE.is_dir():
        pytest.skip(f"no {BUNDLE}; JAXGPT_TEST_DATA names the directory that holds chat/")
    return BUNDLE


@pytest.fixture(scope="module")
def toy_results(bundle):
    return evaluate_core(choose_tasks(bundle, ["present"]), bundle, ToyModel(), BYTES, max_per_task=20)


@pytest.mark.parametrize("name", TOY_BITS)
def test_a_toy_model_answers_as_in_nanochat(toy_results, name):
    assert {result.name: result.answers for result in toy_results}[name] == TOY_BITS[name]


def test_the_toy_model_has_nanochats_mean(toy_results):
    report = as_json(toy_results, "v1", {})
    assert report["mean_centred"] == pytest.approx(0.0440722, abs=5e-8)
    assert report["core"] is None and report["missing"] == ["hellaswag_zeroshot", "hellaswag", "squad", "coqa"]


def test_tasks_and_baselines_are_those_of_the_bundle(bundle):
    text = (bundle / "core.yaml").read_text()
    blocks = text.split("\n-\n")[1:]
    fields = [dict(re.findall(r"^  (\w+): (.*)$", block, re.M)) for block in blocks]
    kinds = {"multiple_choice": "choices", "schema": "contexts", "language_modeling": "continuation"}
    written = [
        (
            field["label"], field["dataset_uri"], kinds[field["icl_task_type"]], json.loads(field["num_fewshot"])[0],
            json.loads(field.get("continuation_delimiter", '" "')),
        )
        for field in fields
    ]  # fmt: skip
    assert written == [(t.name, t.file, t.kind, t.n_shots, t.delimiter) for t in CORE_TASKS]
    files: dict[Baselines, str] = {"v1": "eval_meta_data.csv", "v2": "eval_meta_data_v2.csv"}
    for table, file in files.items():
        with open(bundle / file, newline="") as lines:
            rows = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(lines)}
        for task in CORE_TASKS:
            assert task.baseline(table) == pytest.approx(rows[task.name]), (table, task.name)


def test_gpt2_xl_under_both_baselines(bundle):
    lines = (CHAT_DATA / "gpt2_core" / "openai-community-gpt2-xl.csv").read_text().splitlines()[1:]
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    accuracies = {name: float(accuracy) for name, accuracy, _ in rows if accuracy}
    assert len(accuracies) == 22
    assert core_score(accuracies, "v1") == pytest.approx(0.256525, abs=1e-6)
    assert core_score(accuracies, "v2") == pytest.approx(0.230890, abs=1e-6)


def test_worked_prompts():
    answer = CoreTask("t", "", "choices", 1, (0, 0), "\nAnswer: ")
    shot = {"query": "F", "choices": ["x", "y"], "gold": 1}
    question = ask(answer, {"query": "Q", "choices": ["ab", "ac"], "gold": 0}, [shot], BYTES, 1000)
    assert write_prompts(answer, {"query": "Q", "choices": ["ab"]}, [shot]) == ["F\nAnswer: y\n\nQ\nAnswer: ab"]
    assert [(span.start, span.end, len(span.ids)) for span in question.spans] == [(25, 26, 26)] * 2
    assert question.spans[0].ids[0] == 256

    schema = CoreTask("t", "", "contexts", 0, (0, 0))
    item = {"context_options": ["A x", "B x"], "continuation": "did.", "gold": 0}
    assert [(span.start, span.end) for span in ask(schema, item, [], BYTES, 1000).spans] == [(2, 9)] * 2

    open_end = CoreTask("t", "", "continuation", 1, (0, 0))
    shot, item = {"context": " f ", "continuation": "g"}, {"context": "ctx \n", "continuation": "go on"}
    assert write_prompts(open_end, item, [shot]) == ["f g\n\nctx", "f g\n\nctx go on"]
    assert [(span.start, span.end) for span in ask(open_end, item, [shot], BYTES, 1000).spans] == [(9, 15)]


def test_shots_depend_on_item_and_on_the_number_of_items():
    task = CoreTask("t", "", "continuation", 3, (0, 0))
    items = CoreItems(task, [{"i": i} for i in range(100)], "")
    shots = [[shot["i"] for shot in items.shots_of(i)] for i in range(3)]
    assert shots == [[57, 15, 1], [89, 55, 69], [69, 62, 95]]
    fewer = CoreItems(task, items.items[:50], "")
    assert [shot["i"] for shot in fewer.shots_of(0)] != shots[0]


def test_a_crop_keeps_the_last_tokens_and_is_counted():
    span = Span(np.arange(20), 15, 20)
    kept = span.keep_last(10)
    assert (kept.ids.tolist(), kept.start, kept.end) == (list(range(10, 20)), 5, 10) and span.keep_last(20) is span
    tight = span.keep_last(4)
    assert (tight.start, tight.end, len(tight)) == (1, 4, 3)  # its first token follows nothing
    task = CoreTask("t", "", "choices", 0, (0, 0))
    item = {"query": "12345", "choices": ["a", "b"], "gold": 0}
    assert [ask(task, item, [], BYTES, n).is_cropped for n in (7, 8)] == [True, False]


def test_the_first_of_equal_options_wins_and_an_empty_one_only_where_it_is_first():
    task = CoreTask("t", "", "choices", 0, (0, 0))
    scores = [SpanScore(2.0, 2, False), SpanScore(1.0, 1, False), SpanScore(3.0, 1, False)]
    empty = SpanScore(0.0, 0, True)
    for options, best in ((scores, 0), ([scores[2], *scores], 1), ([scores[0], empty], 0), ([empty, scores[0]], 0)):
        item = {"query": "q", "choices": [str(i) for i in range(len(options))]}
        right = [ask(task, {**item, "gold": g}, [], BYTES, 99).is_right(options) for g in range(len(options))]
        assert right.index(True) == best and sum(right) == 1


def test_finished_tasks_are_not_run_again(bundle, tmp_path, capsys):
    tasks = choose_tasks(bundle, ["copa", "openbook_qa"])
    record = FinishedTasks(tmp_path / "new" / "core.json", {"model": "toy", "max_per_task": 5}, TaskResult)
    model = ToyModel()
    whole = evaluate_core(tasks, bundle, model, BYTES, max_per_task=5)

    class Stopped(ToyModel):
        def __call__(self, spans, on_progress=None):
            if self.n_asked:
                raise KeyboardInterrupt
            return super().__call__(spans)

    with pytest.raises(KeyboardInterrupt):
        evaluate_core(tasks, bundle, Stopped(), BYTES, max_per_task=5, record=record)
    again = ToyModel()
    results = evaluate_core(tasks, bundle, again, BYTES, max_per_task=5, record=record)
    assert [result.answers for result in results] == [result.answers for result in whole]
    assert again.n_asked == 5 * 4  # openbook_qa's options alone
    assert "1 of 2 tasks are finished already" in capsys.readouterr().err
    other = FinishedTasks(record.path, {"model": "other", "max_per_task": 5}, TaskResult)
    with pytest.raises(InputError, match=r"another evaluation \(model was 'toy'\); move it away"):
        evaluate_core(tasks, bundle, ToyModel(), BYTES, max_per_task=5, record=other)
    record.path.write_text("[]")
    with pytest.raises(InputError, match="no record of an evaluation"):
        record.read()


def test_the_table_fits_80_columns_and_says_what_is_missing():
    results = [TaskResult(task.name, "01" * 5000, 1234, "", 1.0) for task in CORE_TASKS]
    screen = PlainConsole(width=80)
    for chosen, words in ((results, "CORE 0."), (results[1:], "not CORE, since tasks are missing: hellaswag_z")):
        table, lines = core_table(as_json(chosen, "v2", {}))
        with screen.capture() as captured:
            screen.print(table)
        assert max(map(len, captured.get().splitlines())) <= 80 and "bigbench_language_identification" in captured.get()
        assert words in lines[0] and "v2" in lines[0] and "longer than the context" in lines[1]


def test_what_cannot_be_evaluated_is_said_in_one_line(bundle, tmp_path):
    copa = tmp_path / "eval_data" / BY_NAME["copa"].file
    copa.parent.mkdir(parents=True)
    cases = {
        '{"query": "q", "choices": ["a"], "gold": 1}\n': "line 1 has a text that is none, or a gold outside",
        '{"query": "q", "choices": ["a", "b"]}\n': "line 1 has no gold; copa needs query, choices, gold",
        "[": "line 1 is no JSON",
        "": "copa keeps 0 items",
    }
    for content, words in cases.items():
        copa.write_text(content)
        with pytest.raises(InputError, match=words):
            read_items(tmp_path, BY_NAME["copa"])
    for names, words in (
        (["cope"], "core_tasks=cope is no task of CORE"),
        ([], r"lacks eval_data/ language_understanding/hellaswag.jsonl, .*--core-tasks present"),
    ):
        with pytest.raises(InputError, match=words):
            choose_tasks(tmp_path, names)
    with pytest.raises(InputError, match="has no eval_data/"):
        choose_tasks(tmp_path / "eval_data")
    with pytest.raises(InputError, match="10 shots and a question; raise --max-per-task"):
        read_items(bundle, BY_NAME["piqa"], 10)
    item = {"context": "a", "continuation": "b"}
    with pytest.raises(InputError, match="no token that begins"):
        ask(BY_NAME["lambada_openai"], item, [], ByteTokenizer(), 99)
    with pytest.raises(InputError, match="joins words across a space"):
        scored_tokens(BY_NAME["lambada_openai"], [np.array([1, 2]), np.array([1, 3, 4])])

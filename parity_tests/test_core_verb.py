"""jaxgpt evaluate --core: JSON, table, what is kept, and mistakes in one line."""

import json

import numpy as np
import pytest

from jaxgpt import evaluate
from jaxgpt.chat.core_run import record_file
from jaxgpt.chat.core_tasks import choose_tasks
from jaxgpt.chat.hellaswag import evaluate_hellaswag, read_problems
from jaxgpt.chat.span import SpanScore
from jaxgpt.config import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.formats.hugging_face import save_hf
from jaxgpt.inference.language_model import load
from jaxgpt.models import init_params
from parity_tests.helpers.chat_data import BYTES, CHAT_DATA

BUNDLE = CHAT_DATA / "eval_bundle"
ARGUMENTS = ("--model", "hf", "--core", "--core-data", str(BUNDLE), "--core-tasks", "copa,winograd")


@pytest.fixture
def here(tmp_path, monkeypatch, gpt2_vocabulary):
    """A directory with random GPT-2 weights in hf/."""
    if not BUNDLE.is_dir():
        pytest.skip(f"no {BUNDLE}; JAXGPT_TEST_DATA names the directory that holds chat/")
    config = GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=16, vocab_size=50257)
    save_hf(tmp_path / "hf", config, {path: 4 * np.asarray(leaf) for path, leaf in init_params(config).items()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_json_table_and_record_agree(here, capsys):
    arguments = [*ARGUMENTS, "--max-per-task", "6", "--out", "kept/core.json"]
    assert evaluate.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["model"] == "hf" and report["baselines"] == "v1" and report["core"] is None
    assert len(report["missing"]) == 20 and [task["n_items"] for task in report["tasks"].values()] == [6, 6]
    assert report["tasks"]["winograd"]["n_cropped"] > 0 and "winograd: accuracy" in err and "ETA" in err
    kept = json.loads((here / "kept" / "core.json").read_text())
    assert [task["answers"].count("1") / 6 for task in kept["tasks"]] == [
        task["accuracy"] for task in report["tasks"].values()
    ]
    assert evaluate.main([*arguments, "--baselines", "v2"]) == 0
    out, err = capsys.readouterr()
    assert "2 of 2 tasks are finished already" in err and "winograd: accuracy" not in err
    accuracy = report["tasks"]["copa"]["accuracy"]
    assert f"{accuracy:.4f}" in out and "(DCLM's corrected baselines, v2); not CORE, since" in " ".join(out.split())
    with pytest.raises(InputError, match="max_per_task was 6"):
        evaluate.main([*ARGUMENTS, "--max-per-task", "5", "--out", "kept/core.json"])


def test_hellaswag(here, capsys):
    """Against one row at a time through LanguageModel: the ending of the lowest mean loss."""
    words = ["runs", "sits on the roof and looks", "plays a long song", "is"]
    problems = [
        {"ctx": f"A man {i}", "endings": words[i % 4 :] + words[: i % 4], "label": str(i % 4)} for i in range(12)
    ]
    (here / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    model, answers = load("hf"), ""
    assert model.tokenizer is not None
    for problem in problems:
        context, losses = model.tokenizer.encode(problem["ctx"]), []
        for ending in problem["endings"]:
            ids = context + model.tokenizer.encode(" " + ending)
            logits = np.asarray(model.logits(ids), np.float64)[len(context) - 1 : -1]
            targets = ids[len(context) :]
            log_sums = np.log(np.exp(logits).sum(axis=1))
            losses.append((log_sums - logits[np.arange(len(targets)), targets]).mean())
        answers += str(int(np.argmin(losses) == int(problem["label"])))
    assert evaluate.main(["--model", "hf", "--hellaswag", "problems.jsonl", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["hellaswag"]
    n_right = answers.count("1")
    assert figures == {"accuracy": n_right / 12, "n_problems": 12, "n_cropped": 0, "answers": answers}
    assert 0 < n_right < 12
    assert evaluate.main(["--model", "hf", "--hellaswag", "problems.jsonl"]) == 0
    assert f"HellaSwag accuracy {n_right / 12:.4f} on 12 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    ['{"ctx": "a", "endings": ["b"], "label": 0}', '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 4}', ""],
    ids=["endings", "label", "empty"],
)
def test_a_file_that_is_not_hellaswag_is_said(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"give hellaswag_val\.jsonl"):
        read_problems(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ("--max-per-task 3", "--max-per-task=3 is for --core or --tasks, not for held-out text; leave it out"),
        ("--core --tokens 5", "--tokens=5 is for held-out text, not for --core; leave it out"),
        ("--core --max-per-task 0", "--max-per-task=0 is below 1"),
        ("--core --core-data nowhere", "core_data=nowhere has no eval_data/"),
        ("--core --baselines v3", "--baselines"),
        ("--core --hellaswag x", "--core and --hellaswag are different evaluations; give one"),
        ("--hellaswag x --out y", "--out=y is for --core or --tasks, not for --hellaswag"),
        ("--hellaswag nothing", "nothing cannot be read"),
    ],
    ids=["no_core", "text", "no_item", "no_data", "no_table", "two", "kept", "no_file"],
)
def test_mistakes_are_said_before_the_model_is_opened(capsys, args, wanted):
    with pytest.raises(InputError) as caught:
        evaluate.main(["--model", "hf", *args.split()])
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_where_finished_tasks_are_kept(capsys):
    assert str(record_file("runs/x", 12, 500, None)) == "runs/x/evaluations/tasks/core_step000012_max500.json"
    assert str(record_file("runs/x", 12, 0, "other.json")) == "other.json"
    for run in (None, "s3://bucket/x"):
        assert record_file(run, 0, 0, None) is None and "are not kept" in capsys.readouterr().err
    if BUNDLE.is_dir():
        assert len(choose_tasks(BUNDLE, ["present"])) == 18


def test_hellaswag_compares_means():
    """The long ending has the larger sum and the smaller mean."""

    class OneNatLess:
        max_tokens = 99

        def __call__(self, spans, on_progress=None):
            return [SpanScore(3.0 if len(span) < 5 else 4.0, len(span), False) for span in spans]

    problem = {"ctx": "a", "endings": ["b", "cccccc", "d", "e"], "label": 1}
    assert evaluate_hellaswag([problem], OneNatLess(), BYTES).answers == "1"

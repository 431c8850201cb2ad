"""The model for lm_eval gives the likelihoods and texts of LanguageModel; lm_eval itself, where it is installed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxgpt.chat.lm_eval_model import JaxgptModel, register
from jaxgpt.config import GPT2Config
from jaxgpt.errors import InputError
from jaxgpt.inference.language_model import load
from parity_tests.helpers.chat_data import BYTES
from parity_tests.helpers.saved_runs import save_run

MODEL = GPT2Config(seq_len=32, n_layer=1, n_head=2, n_embd=32, vocab_size=272)
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("lm_eval") / "run"
    save_run(run, MODEL, BYTES)
    return run


@pytest.fixture(scope="module")
def model(run):
    return JaxgptModel(run=str(run), batch_size=2)


def ask(*args):
    return SimpleNamespace(args=args)


def log_probs(language_model, ids):
    """Of each id given those before it; the first has none."""
    logits_TV = np.asarray(language_model.logits(ids), np.float64)[:-1]
    logits_TV -= logits_TV.max(axis=1, keepdims=True)
    log_probs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    return log_probs_TV[np.arange(len(ids) - 1), ids[1:]]


def test_likelihoods(run, model):
    language_model = load(run)
    pairs = [("red and", " blue"), ("", "green"), ("red ", "blue"), ("x" * 50, " y")]
    found = model.loglikelihood([ask(*pair) for pair in pairs])
    for (context, continuation), (log_prob, is_greedy) in zip(pairs, found, strict=True):
        ids = [256, *(context + continuation).encode()][-32:]
        n_scored = len(continuation) + (len(context) - len(context.rstrip()))
        assert log_prob == pytest.approx(log_probs(language_model, ids)[-n_scored:].sum(), abs=1e-4)
        best_T = np.asarray(language_model.logits(ids)).argmax(axis=1)[:-1]
        assert is_greedy == (best_T[-n_scored:].tolist() == ids[-n_scored:])


def test_rolling_likelihoods_score_each_token_once_with_as_much_context_as_fits(run, model):
    language_model, n = load(run), MODEL.seq_len
    texts = ["", "a", "z" * (n - 1), "hallo " * 6, "long text " * 11]
    for text, found in zip(texts, model.loglikelihood_rolling([ask(text) for text in texts]), strict=True):
        ids, total, done = [256, *text.encode()], 0.0, 1
        while done < len(ids):
            end = min(done + n - 1, len(ids))
            row = ids[max(end - n, 0) : end]
            total, done = total + log_probs(language_model, row)[done - end :].sum(), end
        assert found == pytest.approx(total, abs=1e-3)


def test_texts(run, model):
    language_model = load(run)
    prompts = ["red and", "a", "b" * 40]
    asked = [ask(prompt, {"until": [], "max_gen_toks": 8, "do_sample": False}) for prompt in prompts]
    texts = model.generate_until(asked)
    assert texts[:2] == [language_model.generate(prompt, max_tokens=8, temperature=0) for prompt in prompts[:2]]
    stop = texts[0][2:4]
    assert model.generate_until([ask("red and", {"until": stop, "max_gen_toks": 8})]) == [texts[0].split(stop)[0]]
    sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    assert len({*model.generate_until([ask("a", sampled), ask("a", sampled)])}) == 2
    with pytest.raises(InputError, match="generation setting num_beams is not supported"):
        model.generate_until([ask("a", {"num_beams": 3})])


def test_arguments(run):
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "give one of them"),
        ({"run": "x", "model": "y"}, "give one of them"),
        ({"run": str(run / "nothing")}, "does not exist; runs that can be opened"),
    )
    for arguments, words in cases:
        with pytest.raises(InputError, match=words):
            JaxgptModel(**arguments)
    if find_spec("lm_eval") is None:
        with pytest.raises(InputError, match="pip install 'lm-eval"):
            register()


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_lm_eval_runs_a_local_task(run, tmp_path):
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "yellow"]
    docs = [
        {"query": f"{i} is", "choices": rng.permutation(words).tolist(), "gold": int(rng.integers(4))}
        for i in range(12)
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "colours.yaml").write_text(TASK.format(data=tmp_path / "docs.jsonl"))
    command = [
        sys.executable, "-m", "jaxgpt.chat.lm_eval_model", "run", "--model", "jaxgpt", "--model_args", f"run={run}",
        "--tasks", "colours", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json"),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = Path(tmp_path).rglob("out_*.json")
    language_model, n_right = load(run), 0
    for doc in docs:
        scores = [
            log_probs(language_model, [256, *f"{doc['query']} {choice}".encode()])[-len(choice) - 1 :].sum()
            for choice in doc["choices"]
        ]
        n_right += int(np.argmax(scores)) == doc["gold"]
    assert json.loads(report.read_text())["results"]["colours"]["acc,none"] == pytest.approx(n_right / 12)

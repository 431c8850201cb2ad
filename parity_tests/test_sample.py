"""Sampling and evaluating trained models: text and loss agree with other routes, bad input gives one line."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jaxgpt import evaluate, sample
from jaxgpt.compare import tolerances
from jaxgpt.config import Config, DataConfig, EvalConfig, GPT2Config, MeshConfig, TrainConfig, to_dict
from jaxgpt.data.batches import eval_rows
from jaxgpt.data.shards import open_dataset
from jaxgpt.data.tokenizer import ByteTokenizer, GPT2Tokenizer, tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.formats.hugging_face import save_hf
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.trained import choose_tokenizer, open_run
from jaxgpt.models import init_params
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.run.results import read_results
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import make_step

REPO = Path(__file__).parents[1]
TEXT = "".join(f"{i} green bottles, hanging on the wall; {i * 7 % 13} fell.\n" for i in range(400))
MODEL = GPT2Config(seq_len=32, n_layer=1, n_head=2, n_embd=32, dropout=0.2, vocab_size=64)
STEPS = (100, 200)


def prepared(directory, tokenizer):
    (directory / "text.txt").write_text(TEXT)
    out = directory / tokenizer
    assert (
        prepare([tokenizer, "--input", str(directory / "text.txt"), "--out", str(out), "--tokenizer", tokenizer]) == 0
    )
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with data (char, byte), a run with two checkpoints, one without, and a Hugging Face model."""
    place = tmp_path_factory.mktemp("place")
    data = open_dataset(prepared(place, "char"))
    prepared(place, "byte")
    config = Config(
        model=MODEL,
        data=DataConfig(dir=str(data.directory)),
        train=TrainConfig(batch_tokens=256, micro_batch_size=8, dtype="float32"),
        eval=EvalConfig(tokens=1000),
    )
    about = {"config": to_dict(config), "tokenizer": data.tokenizer_json, "data_sha256": data.digest}
    step = make_step(config, make_mesh(MeshConfig(data=1)))
    (place / "run").mkdir()
    (place / "run" / "config.py").write_text("open('executed', 'w')")
    (place / "empty" / "checkpoints").mkdir(parents=True)
    with Checkpoints(place / "run" / "checkpoints") as saved:
        for n_done in STEPS:
            params = {path: 8 * leaf for path, leaf in step.init_params(n_done).items()}
            saved.save(n_done, step.init_state(params), about)
    with Checkpoints(place / "odd" / "checkpoints") as saved:
        saved.save(1, step.init_state(step.init_params(0)), {"config": "gone"})
    hf_config = dataclasses.replace(MODEL, bias=True, gelu="tanh")
    hf_params = {path: 8 * np.asarray(leaf) for path, leaf in init_params(hf_config).items()}
    save_hf(place / "hf", hf_config, hf_params)
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def written(capsys, *args):
    """What a verb writes to stdout and stderr."""
    capsys.readouterr()
    assert sample.main(list(args)) == 0
    return capsys.readouterr()


# text


def test_stdout_is_the_prompt_and_what_the_engine_gives(here, capsys):
    trained = open_run("run")
    assert trained.tokenizer is not None
    engine = Engine(MODEL, trained.params, dtype="float32", n_valid=trained.tokenizer.vocab_size)
    settings = {"max_tokens": 80, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 5}
    ids: list[Any] = [column[0] for column in engine.generate(trained.tokenizer.encode("7 green"), **settings)]
    out, err = written(
        capsys, "--run", "run", "--prompt", "7 green", "--max-tokens", "80", "--temperature", "0.9", "--top-k", "20",
        "--top-p", "0.95", "--seed", "5",
    )  # fmt: skip
    assert out == f"7 green{trained.tokenizer.decode(ids)}\n"
    assert "run step 200: float32" in err and "80 tokens, the first after" in err and "context of 32" in err
    assert not (here / "executed").exists()


def test_a_context_that_was_full_is_told_of(here, capsys):
    """The prompt has 2 tokens, the context 32, and the last token is read by nobody. Faults: C95."""
    for n, is_told in ((31, False), (32, True)):
        err = written(capsys, "--run", "run", "--prompt", "1 ", "--max-tokens", str(n)).err
        assert ("context of 32" in err) == is_told


def test_seed_step_and_several_samples(here, capsys):
    arguments = ("--run", "run", "--prompt", "1 ", "--max-tokens", "20", "--temperature", "1.5")
    text = written(capsys, *arguments).out
    assert written(capsys, *arguments).out == text
    assert written(capsys, *arguments, "--seed", "2").out != text
    assert written(capsys, *arguments, "--step", "200").out == text
    assert written(capsys, *arguments, "--step", "100").out != text
    several = written(capsys, *arguments, "--samples", "3").out.split(f"{sample.SEPARATOR}\n")
    assert several[0] == text and len(set(several)) == 3
    assert all(one.startswith("1 ") and one.endswith("\n") for one in several)


def test_prompts_from_files_and_stdin(here, tmp_path, capsys, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text("3 green\n")
    arguments = ("--run", "run", "--max-tokens", "5", "--temperature", "0")
    text = written(capsys, *arguments, "--prompt", "3 green\n").out
    assert text.startswith("3 green\n")
    assert written(capsys, *arguments, "--prompt", f"@{file}").out == text
    assert written(capsys, *arguments, "--prompt-file", str(file)).out == text
    with file.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert written(capsys, *arguments, "--prompt-file", "-").out == text
    assert written(capsys, *arguments).out.startswith("\n")


def test_weights_without_tokenizer_take_the_datas(here, capsys):
    arguments = ("--model", "hf", "--max-tokens", "5")
    with pytest.raises(InputError, match="has no tokenizer for its 64 ids; give --data"):
        sample.main(list(arguments))
    assert len(written(capsys, *arguments, "--data", "char", "--temperature", "0").out) >= 6
    assert isinstance(choose_tokenizer(None, GPT2Config(vocab_size=50304)), GPT2Tokenizer)


def steps_of(*rows):
    longest = max(map(len, rows))
    return iter([[row[t] if t < len(row) else None for row in rows] for t in range(longest)])


def test_characters_appear_whole_and_escapes_do_not_reach_a_terminal(capsys, monkeypatch):
    """Faults: C109."""

    class Tokenizer(ByteTokenizer):
        end_of_text = 0

    cut = list("aé€".encode())
    shown = []
    monkeypatch.setattr(sample, "show", shown.append)
    sample.write(steps_of([*cut, 0], [*cut[:4], 0, 0], cut[:2]), "p", Tokenizer(), 3)
    assert shown == [
        "p",
        "a",
        "",
        "é",
        "",
        "",
        "€",
        "\n",
        f"{sample.SEPARATOR}\npaé\ufffd\n",
        f"{sample.SEPARATOR}\npa\ufffd\n",
    ]
    monkeypatch.undo()
    for is_terminal, text in ((False, "a\x1b[2Jb\n"), (True, "a\\x1b[2Jb\n")):
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda self, answer=is_terminal: answer)
        sample.show("a\x1b[2Jb\n")
        assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ("", "--run --model is required"),
        ("--run run --model gpt2", "not allowed with"),
        ("--run run --prompt a --prompt-file b", "not allowed with"),
        ("--run run --promt a", "--promt is no flag of sample; did you mean --prompt?"),
        ("--run run --temperature hot", "--temperature=hot is not a number"),
        ("--run nothing", "--run=nothing does not exist"),
        ("--run char", "--run=char has no checkpoints"),
        ("--run empty", "--run=empty has no checkpoint yet"),
        ("--run odd", "its manifest.json has about.config of another form"),
        ("--run run --step 7", "--step=7 is not in run/checkpoints; there: 100, 200"),
        ("--model hf --step 7", "--step=7 needs --run"),
        ("--model nothing", "nothing does not exist"),
        ("--run run --platform tpu", "platform=tpu is not available"),
        ("--run run --prompt-file char", "prompt file char cannot be read"),
        ("--run run --prompt=", "the prompt is empty, and char has no token that begins a text"),
        ("--run run --prompt @/dev/zero", "prompt file /dev/zero cannot be read: it is a device"),
        ("--run run --prompt @nothing", "prompt file nothing cannot be read"),
        ("--run run --prompt é", "'é' at position 0"),
        (f"--run run --prompt {'1' * 33}", "33 tokens, more than model.seq_len=32"),
        ("--run run --temperature -1", "temperature=-1.0"),
        ("--run run --temperature nan", "temperature=nan"),
        ("--run run --top-k -1", "top_k=-1 is negative"),
        ("--run run --top-k 65", "top_k=65 is above the vocabulary of"),
        ("--run run --top-p 0", "top_p=0.0"),
        ("--run run --top-p 1.5", "top_p=1.5"),
        ("--run run --max-tokens 0", "max_tokens=0"),
        ("--run run --samples 0", "samples=0"),
        ("--run run --seed -1", "seed=-1"),
        ("--run run --data byte", "byte has the 256 ids of byte"),
    ],
)
def test_bad_arguments_give_one_line(here, capsys, args, wanted):
    """Faults: C93, C94, C96, C97."""
    with pytest.raises(InputError) as caught:
        sample.main(args.split())
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_message_lists_the_runs_that_can_be_opened(place, tmp_path, monkeypatch):
    """Not the empty ones, nor torch_ref's, nor what has no readable manifest."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "run", "runs/good")
    Path("runs/empty/checkpoints").mkdir(parents=True)
    Path("runs/broken/checkpoints/3").mkdir(parents=True)
    shutil.copytree("runs/good", "runs/damaged")
    for manifest in Path("runs/damaged").rglob("manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(InputError, match=r"does not exist; runs that can be opened: runs/good$"):
        open_run("runs/nothing")


def start(place, *args) -> Any:
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "jaxgpt.sample", *args]
    return subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_exit_codes(place):
    endless = ("--run", "run", "--max-tokens", "1000000")
    refused, interrupted, unheard = start(place, "--run", "nothing"), start(place, *endless), start(place, *endless)
    out, err = refused.communicate(timeout=300)
    assert (refused.returncode, out, err.count("\n")) == (2, "", 1) and err.startswith("error: --run=nothing")
    assert interrupted.stdout.read(20)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=300)
    assert interrupted.returncode == 130 and out.endswith("\n")
    assert "Traceback" not in err and "interrupted" in err
    assert unheard.stdout.read(20)
    unheard.stdout.close()
    assert unheard.wait(timeout=300) == 0 and "Traceback" not in unheard.stderr.read()
    unheard.stderr.close()


# loss


def evaluated(capsys, *args):
    capsys.readouterr()
    assert evaluate.main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_loss_agrees_with_hf(here, capsys):
    """Hugging Face's own loss over the same rows, each of 32 + 1 tokens."""
    result = evaluated(capsys, "--model", "hf", "--data", "char", "--split", "both", "--tokens", "500")
    model = transformers.GPT2LMHeadModel.from_pretrained("hf").eval()
    data = open_dataset("char")
    for split in (data.train, data.val):
        rows = np.stack([split.read(int(start), 33) for start in eval_rows(split, 32, 500)]).astype(np.int64)
        with torch.no_grad():
            logits = model(torch.from_numpy(rows[:, :-1])).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows[:, 1:]).flatten()).item()
        found = result["splits"][split.name]
        assert found["n_tokens"] == rows[:, 1:].size == 480
        assert abs(found["loss"] - loss) < tolerances.FP32_LOSS
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert found["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-4)  # a byte per character


def test_a_run_is_evaluated_as_it_trained(here, capsys, monkeypatch):
    """On its own data and as many tokens, in batches of any size; without an optimizer or a training state."""
    for name in ("make_optimizer", "place_state"):
        monkeypatch.delattr(f"jaxgpt.training.step.{name}")
    result = evaluated(capsys, "--run", "run")
    assert result["model"] == "run step 200" and result["dtype"] == "float32"
    assert list(result["splits"]) == ["val"] and result["splits"]["val"]["n_tokens"] == 992
    other = evaluated(capsys, "--run", "run", "--micro-batch-size", "3", "--data", str(here / "char"))
    assert abs(other["splits"]["val"]["loss"] - result["splits"]["val"]["loss"]) < tolerances.FP32_LOSS
    assert evaluated(capsys, "--run", "run", "--step", "100")["splits"] != result["splits"]
    everything = evaluated(capsys, "--run", "run", "--tokens", "0")["splits"]["val"]["n_tokens"]
    assert everything == (open_dataset("char").val.n_tokens - 1) // 32 * 32
    assert evaluate.main(["--run", "run"]) == 0
    table = capsys.readouterr().out
    assert f"{result['splits']['val']['loss']:.4f}" in table and "992" in table
    records = [record for record in read_results(Path("run"))[0] if record.step == 200]
    assert result["splits"]["val"]["loss"] in [record.results["val"]["loss"] for record in records]


def test_an_evaluation_that_cannot_be_recorded_is_said(tmp_path, capsys):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "evaluations").write_text("")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "evaluations").symlink_to(tmp_path / "file")
    for run in (str(tmp_path / "file"), str(tmp_path / "link"), "s3://bucket/run"):
        evaluate.record(run, "loss", 1, 1.0, {"val": {"loss": 1.0}}, {})
        said = capsys.readouterr().err
        assert run in said and "gets no record of this evaluation" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ("--model hf", "--data is missing"),
        ("--model hf --data nothing", "data.dir=nothing does not exist"),
        ("--model hf --data byte", "the 256 ids of byte"),
        ("--run run --data byte", "the tokenizers differ"),
        ("--run run --tokens -1", "--tokens=-1"),
        ("--run run --micro-batch-size 0", "--micro-batch-size=0"),
        ("--run run --split test", "--split"),
        ("--run empty", "has no checkpoint yet"),
    ],
)
def test_bad_evaluations_give_one_line(here, capsys, args, wanted):
    with pytest.raises(InputError) as caught:
        evaluate.main(args.split())
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_padded_ids_are_not_written(here, capsys):
    """The model has 64 ids, its tokenizer fewer: hot enough, an unmasked sampler would give one of the others."""
    vocab_size = tokenizer_from_json(open_dataset("char").tokenizer_json).vocab_size
    assert vocab_size < 64
    written(capsys, "--run", "run", "--temperature", "50", "--top-k", "0", "--max-tokens", "300")

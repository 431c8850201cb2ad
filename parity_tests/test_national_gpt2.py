"""A GPT-2 of another language, from its directory to data, a fine-tuned run and an export: always its own tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import jaxgpt
from jaxgpt import evaluate, train
from jaxgpt.config import Config, DataConfig, MeshConfig, OptimConfig, TrainConfig, to_source
from jaxgpt.data.shards import open_dataset
from jaxgpt.data.sources import count_token_bytes, open_directory
from jaxgpt.data.tokenizer import HuggingFaceTokenizer, tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.formats.vocabulary import read_tokenizer
from jaxgpt.prepare.__main__ import main as prepare
from parity_tests.helpers.national_gpt2 import END, LINES, save_national_gpt2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The model, documents of its language, and the config of a run that fine-tunes it on them."""
    place = tmp_path_factory.mktemp("place")
    model = save_national_gpt2(place / "national")
    (place / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES * 5))
    config = Config(
        model=model,
        data=DataConfig(dir="data/own"),
        train=TrainConfig(init_from="national", steps=3, batch_tokens=128, micro_batch_size=4, dtype="float32"),
        optim=OptimConfig(lr=1e-3),
        mesh=MeshConfig(data=1, platform="cpu"),
    )
    (place / "config.py").write_text(to_source(config))
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def make_data(name, tokenizer) -> Path:
    assert prepare([name, "--input", "lines.jsonl", "--tokenizer", tokenizer]) == 0
    return Path("data", name)


def test_data_are_prepared_with_the_tokenizer_of_a_directory(capsys):
    data = open_dataset(make_data("own", "national"))
    tokenizer = tokenizer_from_json(data.tokenizer_json)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    texts = tokenizer.decode(data.train.read(0, data.train.n_tokens)).split(END)
    assert set(texts) <= {piece for line in LINES for piece in line.split(END)} | {""}
    capsys.readouterr()
    make_data("own", "national")
    assert "already prepared" in capsys.readouterr().out
    shutil.copytree("national", "other")
    content = json.loads(Path("other/tokenizer.json").read_text())
    content["model"]["merges"].pop()
    Path("other/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="has other data"):
        prepare(["own", "--input", "lines.jsonl", "--tokenizer", "other"])


def test_its_text_is_that_of_transformers():
    model = jaxgpt.load("national")
    pipe = transformers.pipeline("text-generation", model="national", dtype=torch.float32, device="cpu")
    answer = pipe("ეს სახლი", max_new_tokens=20, do_sample=False, return_full_text=False)
    assert model.generate("ეს სახლი", max_tokens=20, temperature=0) == answer[0]["generated_text"] != ""


def test_a_fine_tuned_run_keeps_it_to_the_export(capsys, tmp_path):
    make_data("own", "national")
    assert train.main(["--config=config.py", f"--run.dir={tmp_path / 'run'}"]) == 0
    assert "bits/byte" in capsys.readouterr().out
    assert evaluate.main(["--run", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["val"]["bits_per_byte"] > 0
    theirs, model = read_tokenizer(Path("national")), jaxgpt.load(tmp_path / "run")
    assert theirs is not None and model.tokenizer is not None and model.tokenizer.digest() == theirs.digest()
    assert not np.array_equal(model.params["ln_f.bias"], jaxgpt.load("national").params["ln_f.bias"])
    model.save_pretrained(tmp_path / "out")
    again = jaxgpt.load(tmp_path / "out")
    assert again.tokenizer is not None and again.tokenizer.digest() == theirs.digest()
    assert again.generate("ეს", max_tokens=20) == model.generate("ეს", max_tokens=20)
    files = (json.loads(Path(place, "tokenizer.json").read_text()) for place in (tmp_path / "out", "national"))
    assert next(files) == next(files)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == END


def test_weights_and_data_of_two_tokenizers_are_refused(tmp_path):
    make_data("bytes", "byte")
    with pytest.raises(InputError, match=r"train.init_from=national has .* --tokenizer national"):
        train.main(["--config=config.py", "--data.dir=data/bytes", f"--run.dir={tmp_path / 'run'}"])


def test_words_have_no_bytes(tmp_path, capsys):
    """A word-level tokenizer: text is generated with its spaces, bits per byte are left out, with a note."""
    shutil.copytree("national", tmp_path / "words")
    words = ["?", "the", "house", "is", "big"]
    made: Tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens(["[CLS]"])
    made.save(str(tmp_path / "words" / "tokenizer.json"))
    (tmp_path / "words" / "config.json").write_text(
        (tmp_path / "words" / "config.json").read_text().replace('_token_id": 0', '_token_id": null')
    )
    model = jaxgpt.load(tmp_path / "words")
    text = model.generate("the house", max_tokens=8)
    assert set(text.split(" ")[1:]) <= {*words, "[CLS]"} and text.startswith(" ")
    assert "".join(model.stream("the house", max_tokens=8)) == text
    model.save_pretrained(tmp_path / "out")
    assert jaxgpt.load(tmp_path / "out").generate("the house", max_tokens=8) == text
    source, said = open_directory(str(make_data("words", str(tmp_path / "words")))), []
    assert count_token_bytes(source, said.append) is None and "do not stand for bytes" in said[0]
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "words"), "--data", "data/words", "--tokens", "64", "--json"]
    assert evaluate.main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["splits"]["val"]["bits_per_byte"] is None and "bits per byte not available" in err


def test_a_tokenizer_that_is_not_read_is_named(tmp_path, capsys):
    shutil.copytree("national", tmp_path / "spiece")
    (tmp_path / "spiece" / "tokenizer.json").rename(tmp_path / "spiece" / "spiece.model")
    model = jaxgpt.load(tmp_path / "spiece")
    assert "spiece.model is not read alone; save the tokenizer again" in capsys.readouterr().err
    with pytest.raises(InputError, match="has no tokenizer for its"):
        model.generate("the")


def test_a_tokenizer_of_more_ids_than_the_model(tmp_path):
    """Faults: C46."""
    shutil.copytree("national", tmp_path / "more")
    content = json.loads((tmp_path / "more" / "tokenizer.json").read_text())
    content["model"]["vocab"]["more"] = 5000
    (tmp_path / "more" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="its tokenizer has 5001 ids, its model only"):
        jaxgpt.load(tmp_path / "more")

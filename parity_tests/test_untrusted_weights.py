"""Weights of others that are damaged or made to harm: one line, soon, and nothing large is read or allocated."""

import json
import os
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxgpt.config import GPT2Config
from jaxgpt.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from jaxgpt.data.tokenizer.byte_pairs import BPETokenizer
from jaxgpt.errors import InputError, run_verb
from jaxgpt.formats.hugging_face import save_hf
from jaxgpt.formats.nanogpt import load_nanogpt
from jaxgpt.formats.pretrained import load_pretrained
from jaxgpt.formats.vocabulary import read_tokenizer
from jaxgpt.models import param_shapes

pytestmark = pytest.mark.usefixtures("in_tmp_path")

MODEL = GPT2Config(vocab_size=30, seq_len=8, n_layer=1, n_head=1, n_embd=8, bias=True, gelu="erf")


def params():
    return {path: np.ones(leaf.shape, np.float32) for path, leaf in param_shapes(MODEL).items()}


def state(prefix="transformer."):
    tensors = {
        f"{prefix}{path}": torch.tensor(weight.T.copy() if ".c_" in path and weight.ndim == 2 else weight)
        for path, weight in params().items()
    }
    return tensors | {f"{prefix.replace('transformer.', '')}lm_head.weight": tensors[f"{prefix}wte.weight"]}


def write_nanogpt(tensors, path="ckpt.pt", **options):
    args = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "bias": True, "vocab_size": 30}
    torch.save({"model": tensors, "model_args": args}, path, **options)
    return path


def message(call, *args) -> str:
    begin = time.perf_counter()
    with pytest.raises(InputError) as error:
        call(*args)
    assert "\n" not in str(error.value) and time.perf_counter() - begin < 5
    return str(error.value)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("is_new", [True, False])
def test_nanogpts_names_and_formats(prefix, is_new):
    """Faults: F15, C111."""
    write_nanogpt(state(f"{prefix}transformer."), _use_new_zipfile_serialization=is_new)
    config, loaded = load_nanogpt("ckpt.pt")
    assert config == MODEL and all((loaded[path] == weight).all() for path, weight in params().items())


def test_a_damaged_file_of_the_old_format():
    content = Path(write_nanogpt(state(), _use_new_zipfile_serialization=False)).read_bytes()
    for n in (1, 100, len(content) // 2, len(content) - 4):
        Path("cut.pt").write_bytes(content[:n])
        assert "cut.pt" in message(load_nanogpt, "cut.pt")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: torch.zeros(1).expand(w.shape), "has fewer values than its shape (30, 8) says"),
        (lambda w: torch.zeros(w.shape, device="meta"), "has no values (device meta)"),
        (lambda w: w.to_sparse(), "is sparse"),
        (lambda w: w.to_sparse_csr(), "is sparse"),
        (lambda w: w * float("nan"), "transformer.wte.weight holds NaN values; its training diverged"),
        (lambda w: w * float("inf"), "holds infinite values"),
        (lambda w: w.to(torch.int32), "is torch.int32"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_tensors_that_hold_no_weights_are_named(change, expected):
    """Faults: F15, C71, C112."""
    name = "transformer.wte.weight"
    tensors = state()
    write_nanogpt(tensors | {name: change(tensors[name]), "lm_head.weight": tensors[name]})
    found = message(load_nanogpt, "ckpt.pt")
    assert expected in found and name in found


def test_a_tensor_that_occurs_twice():
    """Faults: C62."""
    tensors = state()
    write_nanogpt(tensors | {"module.transformer.wte.weight": tensors["transformer.wte.weight"]})
    assert "holds transformer.wte.weight twice" in message(load_nanogpt, "ckpt.pt")
    write_nanogpt(tensors | {"wte.weight": tensors["transformer.wte.weight"]})
    assert "twice, with and without transformer." in message(load_nanogpt, "ckpt.pt")


def test_an_archive_that_grows():
    """Faults: F15, C76."""
    with zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    assert "bomb.pt has" in message(load_nanogpt, "bomb.pt")


def hf_directory(name="m", **changes):
    save_hf(name, MODEL, params())
    config = json.loads(Path(name, "config.json").read_text()) | changes
    Path(name, "config.json").write_text(json.dumps(config))
    return name


def header_of(n):
    tensors = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(n)}
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", b"[" * 200_000, "config.json cannot be read as JSON"),
        ("config.json", b'{"a":' * 200_000, "config.json cannot be read as JSON"),
        ("config.json", b" " * ((16 << 20) + 1), "it has more than"),
        ("config.json", b"\xff", "config.json cannot be read as JSON"),
        ("config.json", b'{"n_layer": ' + b"9" * 5000 + b"}", "config.json cannot be read as JSON"),
        ("model.safetensors", header_of(400_000), "model.safetensors says that its header has"),
        ("model.safetensors", b"\xff" * 100, "model.safetensors says that its header has"),
        ("model.safetensors", b"<html>not found</html>", "model.safetensors"),
    ],
)
def test_files_of_a_hugging_face_directory(name, content, expected):
    """Faults: F15, C45, C58."""
    hf_directory()
    Path("m", name).write_bytes(content)
    assert expected in message(load_pretrained, "m")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "vocab.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_a_pipe_or_a_device_in_place_of_a_file(name, kind):
    """Faults: F15, C43."""
    hf_directory()
    if name.endswith("index.json"):
        Path("m/model.safetensors").unlink()
    Path("m", name).unlink(missing_ok=True)
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "directory": Path.mkdir}[kind](Path("m", name))
    call = read_tokenizer if name == "vocab.json" else load_pretrained
    assert "m" in message(call, Path("m") if name == "vocab.json" else "m")
    os.mkfifo("pipe.pt")
    assert "is a pipe or a device" in message(load_pretrained, "pipe.pt")
    assert "is a pipe or a device" in message(load_pretrained, "/dev/zero")


def test_nan_in_a_hugging_face_directory():
    """Faults: F15, C71."""
    hf_directory()
    tensors = load_file("m/model.safetensors")
    tensors["transformer.h.0.ln_1.bias"][3] = np.nan
    save_file(tensors, "m/model.safetensors")
    assert "transformer.h.0.ln_1.bias holds NaN values" in message(load_pretrained, "m")


def spelled(token: bytes) -> str:
    """As GPT-2's files spell bytes: printable Latin-1 as it is, the rest from U+0100 on."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {byte: chr(byte) for byte in keep}
    shown |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in shown)}
    return "".join(shown[byte] for byte in token)


def test_only_gpt2s_own_vocabulary_is_taken_for_it(gpt2_vocabulary):
    """Faults: F15, C46."""
    Path("m").mkdir()
    assert read_tokenizer(Path("m")) is None
    bpe = GPT2Tokenizer()._bpe
    vocab = {spelled(bpe.decode_single_token_bytes(i)): i for i in range(50256)} | {"<|endoftext|>": 50256}
    for escaped in (True, False):
        Path("m/vocab.json").write_text(json.dumps(vocab, ensure_ascii=escaped, indent=None if escaped else 1))
        assert isinstance(read_tokenizer(Path("m")), GPT2Tokenizer)
    Path("m/merges.txt").write_text("#version: 0.2\na b\n")
    assert not isinstance(other := read_tokenizer(Path("m")), GPT2Tokenizer)
    assert other is not None and (other.vocab_size, other.end_of_text) == (50257, None)
    assert other.encode("ab a") == [vocab["ab"], vocab["Ġ"], vocab["a"]]
    for values in (vocab | {"a": vocab["b"], "b": vocab["a"]}, {f"t{i}": i for i in range(50257)}):
        Path("m/vocab.json").write_text(json.dumps(values))
        assert not isinstance(read_or_refuse("m"), GPT2Tokenizer)
    for values in ({}, [], {"a": "b"}):
        Path("m/vocab.json").write_text(json.dumps(values))
        message(read_tokenizer, Path("m"))
    Path("m/merges.txt").unlink()
    assert "vocab.json is not read alone; save the tokenizer again" in message(read_tokenizer, Path("m"))
    Path("m/vocab.json").unlink()
    for values in ({"model": {"vocab": vocab, "merges": ["a b"]}}, {"model": 1}, []):
        Path("m/tokenizer.json").write_text(json.dumps(values))
        assert not isinstance(read_or_refuse("m"), GPT2Tokenizer)
    Path("m/tokenizer.json").write_text("{")
    assert "tokenizer.json is not JSON" in message(read_tokenizer, Path("m"))
    Path("m/tokenizer.json").unlink()
    Path("m/tokenizer.model").write_bytes(b"")
    assert "tokenizer.model is not read alone" in message(read_tokenizer, Path("m"))


def read_or_refuse(directory):
    try:
        return read_tokenizer(Path(directory))
    except InputError:
        return None


def test_names_inside_files_are_shown_and_not_obeyed(monkeypatch, capsys):
    """Faults: C109."""
    name = "\x1b[31m[bold]evil\r\nline\u202e\x9b"
    write_nanogpt(state() | {f"transformer.{name}": torch.ones(1)})
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as left:
        run_verb(lambda args: bool(load_nanogpt("ckpt.pt")))
    err = capsys.readouterr().err
    assert left.value.code == 2 and "transformer.\\x1b[31m[bold]evil\\x0d\\nline\\u202e\\x9b" in err
    assert err.count("\n") == 1 and err.rstrip("\n").isprintable()


def test_nothing_is_a_prompt_where_a_token_begins_a_text(gpt2_vocabulary):
    """Faults: C93."""
    bpe = BPETokenizer([bytes([i]) for i in range(256)])
    assert bpe.encode_prompt("") == [bpe.begin_of_text]
    assert GPT2Tokenizer().encode_prompt("") == [50256]
    for tokenizer in (ByteTokenizer(), CharTokenizer("ab")):
        assert "the prompt is empty" in message(tokenizer.encode_prompt, "")

"""Does SFT teach answers? A tiny model learns FastChat's 500 conversations and 200 of GSM8K's problems.

    JAXGPT_TEST_DATA=DIR python -m parity_tests.sft_answers

Bits per byte on the assistant's text have to fall by half in 300 steps, from fresh weights, and the greedy answer to
each of QUESTIONS has to be one that the conversations give, word for word. The same run with its mask inverted, so that
all tokens but the assistant's are trained, must do neither. Two minutes on 2 cores.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxgpt.chat.tools import answer_stop_ids
from jaxgpt.config import (
    NANOCHAT_MID_2025,
    ChatConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    NanochatConfig,
    RunConfig,
    TrainConfig,
    to_source,
)
from jaxgpt.config.steps import PlannedStep
from jaxgpt.data.batch import Batch
from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.chat_batches import ChatReader
from jaxgpt.data.conversations import Conversation, render_for_completion
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.inference.trained import open_run
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.train import main as train
from parity_tests.helpers.chat_data import CHAT_DATA, fastchat, say
from parity_tests.helpers.saved_runs import save_run
from parity_tests.helpers.train_runs import records

QUESTIONS = ("Who are you?", "What is your name?", "Are you ChatGPT?")
SEQ_LEN, N_STEPS, VOCAB, N_EMBD = 128, 300, 512, 64


def write_data(place: Path) -> tuple[Tokenizer, set[str]]:
    """The mixture, a tokenizer trained on it, and all texts that an assistant says to QUESTIONS or anything else."""
    own = place / "own.jsonl"
    own.write_text("".join(json.dumps(conversation) + "\n" for conversation in fastchat()))
    inputs = [f"own={own}", f"gsm8k={CHAT_DATA / 'gsm8k' / 'train.jsonl'}"]
    assert prepare(["mix", "--mixture", "own+gsm8k:200", "--out", str(place / "mix"), "--input", *inputs]) == 0
    lines = (place / "mix" / "train.jsonl").read_text().strip("\n").split("\n")
    said = [message for line in lines for message in Conversation.read(json.loads(line)).messages]
    texts = ["".join(part.text for part in message.parts) for message in said]
    answers = {text for text, message in zip(texts, said, strict=True) if message.role == "assistant"}
    return train_bpe(texts, VOCAB), answers


def write_config(place: Path, model: NanochatConfig) -> Path:
    config = Config(
        run=RunConfig(dir=str(place / "run")),
        model=model,
        data=DataConfig(dir=str(place / "mix"), sampling="conversations"),
        chat=ChatConfig(base=str(place / "base")),
        train=TrainConfig(steps=N_STEPS, batch_tokens=8 * SEQ_LEN, micro_batch_size=8, dtype="float32"),
        optim=NANOCHAT_MID_2025,
        eval=EvalConfig(every=0, tokens=0),
        log=LogConfig(every=50),
        checkpoint=CheckpointConfig(every=0),
        mesh=MeshConfig(data=1, platform="cpu"),
    )
    path = place / "answers.py"
    path.write_text(to_source(config))
    return path


@contextlib.contextmanager
def inverted_mask(pad: int) -> Iterator[None]:
    """All targets count but the assistant's, and the padding."""
    read = ChatReader.read

    def inverted(self: ChatReader, planned: PlannedStep, lo: int, hi: int) -> Batch:
        batch = read(self, planned, lo, hi)
        return Batch(batch.tokens, ((batch.mask == 0) & (batch.tokens[..., 1:] != pad)).astype(np.uint8))

    ChatReader.read = inverted
    try:
        yield
    finally:
        ChatReader.read = read


def bits_per_byte(run: Path) -> float:
    """On the assistant's text of val, at the end."""
    return records(run)[-1]["val_bits_per_byte"]


def answers_of(run: Path, tokenizer: Tokenizer) -> list[str]:
    """Greedy ones to QUESTIONS, the end token left out."""
    engine, stop_ids, found = open_run(str(run), platform="cpu").engine(), answer_stop_ids(tokenizer), []
    for question in QUESTIONS:
        prompt = render_for_completion(Conversation.read(say(question, "")), tokenizer)
        written = engine.generate(prompt.tolist(), max_tokens=60, temperature=0.0, stop_ids=stop_ids)
        ids = [token for (token,) in written if token is not None and token not in stop_ids]
        found.append(tokenizer.decode(ids))
    return found


def main(args: Sequence[str] = ()) -> int:
    assert not args, args
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        os.chdir(place)
        tokenizer, known = write_data(place)
        model = NanochatConfig(era="2025", depth=2, n_embd=N_EMBD, head_dim=32, seq_len=SEQ_LEN)
        model = model.complete(tokenizer.vocab_size)
        save_run(place / "base", model, tokenizer)
        path = write_config(place, model)
        assert train([f"--config={path}", "--run.dir=before", "--train.steps=1", "--chat.init_lr_frac=1e-9"]) == 0
        assert train([f"--config={path}", "--run.dir=sft"]) == 0
        with inverted_mask(tokenizer.special_id("<|bos|>")):
            assert train([f"--config={path}", "--run.dir=inverted"]) == 0
        before, after, other = (bits_per_byte(place / name) for name in ("before", "sft", "inverted"))
        ours, theirs = (answers_of(place / name, tokenizer) for name in ("sft", "inverted"))
    print(f"bits per byte on the assistant's text: {before:.3f} -> {after:.3f}, mask inverted {other:.3f}")
    for question, answer, wrong in zip(QUESTIONS, ours, theirs, strict=True):
        print(f"{question}  {answer!r}: {'' if answer in known else 'NOT '}in the data; inverted {wrong[:60]!r}")
    is_good = after < before / 2 < other and known.issuperset(ours) and known.isdisjoint(theirs)
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A run in miniature, for `--smoke`: the same code path and optimizer, a few steps of a small model on embedded text.

It answers "does this config run here" within a minute, on any machine, and is how the tests run every shipped config.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np

from jaxgpt.config import CheckpointConfig, Config, EvalConfig, LogConfig, MeshConfig, SampleConfig
from jaxgpt.data.bpe import train_bpe
from jaxgpt.data.chat_data import write_chat_manifest
from jaxgpt.data.conversations import Conversation
from jaxgpt.data.manifest import FORMAT, write_manifest
from jaxgpt.errors import InputError
from jaxgpt.files import is_location
from jaxgpt.prepare.chat import SplitWriter
from jaxgpt.prepare.encode import encode_source
from jaxgpt.prepare.inputs import open_files
from jaxgpt.prepare.text_shards import write_text_shards
from jaxgpt.run.checkpoints import list_steps

STEPS = 6
SEQ_LEN = 64
ROWS = 2
MICROBATCHES = 2
VOCAB_SIZE = 512
VAL_FRACTION = 0.2
N_DOCUMENTS, DOCUMENT_WORDS = 80, 150
CHAT_WORDS = 5
TEXT = (
    "a about after again all also an and any are around as at away back be because been before between big both but "
    "by call can change come could day did different do does down each end even every few find first follow for "
    "form found from get give go good great had hand has have he help her here high him his home house how if in "
    "into is it its just keep kind know land large last learn left letter like line little live long look made make "
    "man many may me mean men more most mother move much must my name near need never new next night no not now "
    "number of off old on one only open or other our out over page paper part people place play point read right "
    "run said same saw say school sea see seem sentence set she should show side small so some something sound "
    "spell start state still stop story study such take tell than that the their them then there these they thing "
    "think this those thought three through time to together too tree try turn two under up us use very walk want "
    "was water way we well went were what when where which while white who why will with word work world would "
    "write year you young your "
)
WORDS = tuple(TEXT.split())
"""The text is drawn from these: the same on every machine and under every version of Python."""
MARK = "made_by_smoke"
"""A file in a directory that --smoke made, and so may delete."""


def shrink(config: Config, args: list[str], *, is_resumed: bool = False) -> Config:
    """The config in miniature, with its data written into its run directory, which is replaced.

    Args:
      is_resumed: a directory that has a checkpoint is kept, and its data.

    That is the one of `--run.dir`, if the command line has it, else <parent of the run's>/smoke/<name of the run>.

    Raises:
      InputError: that directory holds something else, or cannot be written.
    """
    is_named = any(arg.partition("=")[0] == "--run.dir" for arg in args)
    run_dir = Path(config.run.dir)
    if is_location(config.run.dir):
        if is_named:
            raise InputError(f"--run.dir={config.run.dir} is not on this machine, where --smoke writes; leave it out")
        run_dir = Path("runs", run_dir.name)
    if not is_named:
        run_dir = run_dir.parent / "smoke" / run_dir.name
    if not (is_resumed and (run_dir / MARK).exists() and list_steps(run_dir / "checkpoints")):
        make_directory(run_dir, MARK if is_named else "data")
        if config.data.is_chat:
            write_chat(run_dir / "data", has_sums=config.is_rl)
        else:
            write_data(run_dir / "data", is_text=config.data.is_text, is_modded=config.data.sampling == "bos_aligned")
    shrunk = [config.model.shrink_sizes(stage.sizes(), SEQ_LEN) for stage in config.train.stages]
    seq_len, stages = SEQ_LEN, []
    for i, (stage, sizes) in enumerate(zip(config.train.stages[: STEPS - 1], shrunk, strict=False)):
        seq_len = sizes.get("seq_len", seq_len)
        batch_tokens = MICROBATCHES * ROWS * seq_len
        rows = {"micro_batch_size": 0, "batch_tokens": batch_tokens}
        stages.append(dataclasses.replace(stage, from_step=1 + i, **rows, **sizes))
    evaluated = {name: getattr(config.eval, name) for name in ("seq_len", "long_window") if getattr(config.eval, name)}
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=str(run_dir)),
        model=config.model.shrink(SEQ_LEN),
        data=dataclasses.replace(
            config.data, dir=str(run_dir / "data"), train_files="", val_files="", lanes=1, bos_id=-1, epochs=0,
            tokenizer=str(run_dir / "data" / "tokenizer.json") if config.data.is_chat else "",
        ),
        chat=dataclasses.replace(
            config.chat, tasks="", optimizer=config.chat.optimizer if config.chat.base else "fresh"
        ),
        train=dataclasses.replace(
            config.train,
            steps=STEPS, batch_tokens=MICROBATCHES * ROWS * SEQ_LEN, micro_batch_size=ROWS, loss_chunk_tokens=SEQ_LEN,
            attention="auto", init_from="", stages=tuple(stages),
        ),
        mesh=MeshConfig(data=1, platform=config.mesh.platform),
        eval=dataclasses.replace(
            EvalConfig(every=STEPS // 2, tokens=4 * SEQ_LEN, spread=config.eval.spread),
            **config.model.shrink_sizes(evaluated, SEQ_LEN),
        ),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=STEPS // 2, keep_best=config.checkpoint.keep_best),
        rl=dataclasses.replace(
            config.rl, samples=ROWS, max_tokens=16, eval_questions=4, eval_samples=2, device_rows=0
        ) if config.is_rl else config.rl,
        sample=SampleConfig(every=STEPS, max_tokens=16),
    )  # fmt: skip


def make_directory(run_dir: Path, mark: str) -> None:
    """Makes an empty run directory; replaces one with the mark in it.

    Args:
      mark: what --smoke alone would have written there. Somebody's own directory may well have `data` in it.
    """
    try:
        is_free = not os.path.lexists(run_dir) or (run_dir.is_dir() and not any(run_dir.iterdir()))
        if run_dir.is_symlink() or not (is_free or (run_dir / mark).exists()):
            raise InputError(f"--smoke writes to {run_dir}, which it did not create; move it away")
        if run_dir.exists():
            shutil.rmtree(run_dir)
        (run_dir / "data").mkdir(parents=True)
        (run_dir / MARK).write_text("the next --smoke deletes this directory\n")
    except OSError as error:
        raise InputError(f"--smoke cannot write {run_dir}: {error.strerror}; choose another --run.dir") from error


def write_data(directory: Path, *, is_text: bool, is_modded: bool = False) -> None:
    """Sentences of common words: text shards with a tokenizer, or shards of bytes.

    Args:
      is_modded: shards whose documents begin with a token, as modded-nanogpt reads them.
    """
    documents = [draw_document(number) for number in range(N_DOCUMENTS)]
    text = directory / "documents.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    source = open_files([text], "text")
    if is_text:
        write_text_shards(
            source, directory, val_fraction=VAL_FRACTION, shard_chars=10**6, group_documents=10, progress=_in_silence
        )
        tokenizer = train_bpe(documents, VOCAB_SIZE)
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
        return
    made = encode_source(
        source, directory, tokenizer="byte", val_fraction=VAL_FRACTION, shard_tokens=10**6, n_threads=1,
        progress=_in_silence, is_modded=is_modded,
    )  # fmt: skip
    write_manifest(directory, {"format": FORMAT, "corpus": "smoke", **made})


def write_chat(directory: Path, *, has_sums: bool = False) -> None:
    """Short conversations in the same words, and the tokenizer of text shards: a base run's --smoke has the same.

    Args:
      has_sums: sums instead, whose answers can be judged.
    """
    documents = [draw_document(number) for number in range(N_DOCUMENTS)]
    with SplitWriter(directory) as writer:
        for number, document in enumerate(documents):
            words = document.split()
            said = [" ".join(words[at : at + CHAT_WORDS]) for at in range(0, 4 * CHAT_WORDS, CHAT_WORDS)]
            said = [f"What is {number} + 1?", f"#### {number + 1}"] if has_sums else said
            messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
            split = "val" if number < VAL_FRACTION * N_DOCUMENTS else "train"
            writer.add(split, Conversation.read({"messages": messages}))
    write_chat_manifest(directory, {"corpus": "smoke", "n_left_out": 0, "splits": writer.describe()})
    tokenizer = train_bpe(documents, VOCAB_SIZE)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")


def draw_document(number: int) -> str:
    """Sentences whose words each suggest what comes next, so that there is something to learn."""
    bits = np.random.Philox(key=np.array([0, number], np.uint64)).random_raw(2 * DOCUMENT_WORDS).astype(object)
    words, at = [], int(bits[0]) % len(WORDS)
    for jump, length in zip(bits[::2], bits[1::2], strict=True):
        at = (7 * at + int(jump) % 4 + 1) % len(WORDS)
        words.append(WORDS[at] + "." * (int(length) % 9 == 0))
    return " ".join(words) + "\n"


def _in_silence(_: str):
    return lambda n_read: None

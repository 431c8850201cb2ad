"""What every trial starts from: data, configs, and the uninterrupted runs that a trial must end equal to.

All processes share one cache of compiled programs and one of digests, so that a run of 30 steps takes a few seconds.
"""

import dataclasses
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from parity_tests.helpers.chat_data import BYTES, say
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.train_runs import TEXT

N_STEPS = 30
EVERY = 5
"""Steps between checkpoints; evaluations come at every second one."""
FIRST_S = 1800.0
"""After so long an uninterrupted run counts as hung: it compiles, and nothing says yet how fast the machine is."""
PATIENCE_S, PATIENCE_RUNS = 150.0, 4
"""After so many seconds any other process counts as hung, or after so many times what the slowest uninterrupted run
took, where that is longer. Alone on two cores a run takes 4 to 8 s; on a busy machine it may need minutes."""
LAUNCHER_S = 15.0
"""A process whose peer has failed is sent SIGTERM after so long: it may wait for minutes for one that never joins."""
FRAMEWORKS = {"jaxgpt": "jaxgpt.train", "torch_ref": "torch_ref.train"}
KINDS = ("shards", "documents", "nanogpt", "modded", "chat", "rl")
"""Of data: shards of one long text, documents packed with a cursor, nanoGPT's files, which have no manifest,
modded-nanogpt's shards, on which its record 62 is trained in small, through its stages and the split at step 16,
conversations for SFT, and questions for RL, from a model that gets about half of them right."""
_CONFIG = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}, sampling={sampling!r}),
    model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=16, vocab_size={vocab_size}),
    train=TrainConfig(steps={n_steps}, batch_tokens=128, micro_batch_size=8, dtype="float32"),
    optim=OptimConfig(lr=1e-2, schedule=ScheduleConfig(warmup_steps=3)),
    eval=EvalConfig(every={eval_every}, tokens=400),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every={every}, keep=3),
    mesh=MeshConfig(data=1),
)
"""

_RECORD_62 = """
import dataclasses
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}, sampling={sampling!r}, max_document_tokens=48, epochs=0),
    model=ModdedConfig(
        record="62", n_layer=3, window_pattern="SL-", paired_heads="P--", value_embeds="0--", skip_from=0, skip_to=2,
        backout_from=1, n_embd=32, head_dim=16, seq_len=16, block_tokens=4,
    ),
    train=TrainConfig(
        steps={n_steps}, batch_tokens=128, micro_batch_size=8, dtype="float32", target_weights=(1.0, 0.5, 0.25),
        stages=speedrun_stages(
            scheduled_steps=24, batch_tokens=(128, 256, 384), windows=((1, 3), (2, 5), (3, 6)), block_tokens=4,
            lr_from=(1 / 3, 2 / 3), lr_scales=(1.52, 1.73), target_weights=((1.0, 0.5), (1.0,)),
        ),
    ),
    optim=dataclasses.replace(
        MODDED_62, tie_until=16, muon=dataclasses.replace(MODDED_62.muon, ns_dtype="float32"),
        schedule=dataclasses.replace(MODDED_62.schedule, decay_steps=24),
    ),
    eval=EvalConfig(every={eval_every}, tokens=400),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every={every}, keep=3),
    sample=SampleConfig(every=0),
    mesh=MeshConfig(data=1),
)
"""

_CHAT = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}, sampling="conversations", tokenizer={tokenizer!r}),
    chat=ChatConfig(packing="best_fit"),
    model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=32, vocab_size=265),
    train=TrainConfig(steps={n_steps}, batch_tokens=320, micro_batch_size=20, dtype="float32"),
    optim=OptimConfig(lr=1e-2, schedule=ScheduleConfig(warmup_steps=3)),
    eval=EvalConfig(every={eval_every}, tokens=0),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every={every}, keep=3),
    mesh=MeshConfig(data=1),
)
"""

_RL = """
from jaxgpt.config import *
config = Config(
    data=DataConfig(dir={data!r}, sampling="conversations"),
    chat=ChatConfig(base={base!r}, init_lr_frac=0.1),
    rl=RLConfig(samples=8, max_tokens=9, eval_questions=8, eval_samples=2),
    model=GPT2Config(seq_len=16, n_layer=1, n_head=2, n_embd=32, vocab_size=265),
    train=TrainConfig(steps={n_steps}, batch_tokens=512, micro_batch_size=16, dtype="float32", spike_window=0),
    optim=OptimConfig(lr=1e-2, weight_decay=0.0, schedule=ScheduleConfig(warmup_steps=3)),
    eval=EvalConfig(every={eval_every}, tokens=0),
    log=LogConfig(every=1),
    checkpoint=CheckpointConfig(every={every}, keep=3, keep_best=False),
    mesh=MeshConfig(data=1),
)
"""
_CONFIGS = {"modded": _RECORD_62, "chat": _CHAT, "rl": _RL}
"""Of the kinds that have one of their own."""
_FIGURES = ("train_loss", "val_loss", "grad_norm", "reward", "answer_tokens", "ended", "signal", "pass_at_1")
"""What a record of metrics.jsonl says of a step, times left out."""


def runs_of(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Frameworks and kinds that go together: RL is jaxgpt's alone."""
    return [(framework, kind) for framework in FRAMEWORKS for kind in kinds if (framework, kind) != ("torch_ref", "rl")]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that ended, or was ended: code None means that it hung and was killed."""

    code: int | None
    shown: str
    errors: str
    seconds: float

    @property
    def text(self) -> str:
        return self.shown + self.errors

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith(("error:", "failed:"))]


class Running:
    """A training process under observation.

    Args:
      file_kb: no file that it writes may be larger; 0: no limit.
      stdout: where standard output goes; by default it is kept.
      n_lines: standard output is closed after so many lines.
      patience_s: after so long it counts as hung.
    """

    def __init__(
        self,
        command: list[str],
        env: dict[str, str],
        *,
        file_kb: int = 0,
        stdout: int | None = None,
        n_lines: int = 10**9,
        patience_s: float = PATIENCE_S,
    ):
        if file_kb:
            command = ["/bin/sh", "-c", 'ulimit -f "$0"; exec "$@"', str(2 * file_kb), *command]  # blocks of 512 bytes
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            command, env=env, cwd=REPO, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE if stdout is None else stdout,
        )  # fmt: skip
        self.patience_s = patience_s
        self._n_lines = n_lines
        self._texts = {"stdout": bytearray(), "stderr": bytearray()}
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._texts]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        pipe = getattr(self.process, name)
        if pipe is None:
            return
        n_left = self._n_lines if name == "stdout" else 10**9
        for line in islice(pipe, n_left):
            self._texts[name] += line
        pipe.close()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, number: int) -> None:
        if self.is_alive:
            self.process.send_signal(number)

    def wait(self) -> Ended:
        try:
            code = self.process.wait(self.patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        for reader in self._readers:
            reader.join(5)
        shown, errors = (bytes(self._texts[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        return Ended(code, shown, errors, time.monotonic() - self.begin)


@dataclasses.dataclass(frozen=True)
class Straight:
    """An uninterrupted run.

    Attributes:
      losses: step -> its figures.
      seconds: how long it took, with its programs compiled.
      slowest_s: how long it took when it compiled them, or the same where that was less.
    """

    losses: dict[int, tuple]
    seconds: float
    slowest_s: float


class Rig:
    """Data of some kinds, and for each framework and kind the uninterrupted run.

    Args:
      directory: a scratch directory; everything is made there.
    """

    def __init__(self, directory: Path, kinds: Sequence[str] = KINDS):
        self.directory = directory
        self.patience_s = FIRST_S
        self._straight: dict[tuple[str, str, bool], Straight] = {}
        cache = {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XDG_CACHE_HOME": str(directory / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.env = environment() | cache
        for kind in kinds:
            if not (directory / kind).exists():  # RL has made SFT's
                self._make_data(kind)

    def _make_data(self, kind: str) -> None:
        where = self.directory / kind
        where.mkdir()
        if kind == "nanogpt":
            ids = np.random.default_rng(0).integers(0, 60, 6000).astype(np.uint16)
            ids[:5000].tofile(where / "train.bin")
            ids[5000:].tofile(where / "val.bin")
            return
        if kind in ("chat", "rl"):
            self._make_talk(kind, where)
            return
        source = self.directory / f"{kind}.txt"
        source.write_text(TEXT)
        prepare = ["jaxgpt.prepare", kind, "--input", str(source), "--out", str(where)]
        if kind == "documents":
            self._call(*prepare, "--format", "text", "--shard-chars", "6000", "--group-documents", "4")
            self._call("jaxgpt.train_tokenizer", "--data", str(where), "--vocab-size", "300")
        elif kind == "modded":
            self._call(*prepare, "--format", "modded", "--tokenizer", "byte")
        else:
            self._call(*prepare, "--tokenizer", "char")

    def _make_talk(self, kind: str, where: Path) -> None:
        """Ten questions: for SFT half of them are answered and half declined; for RL, with the run it starts from."""
        where.rmdir()
        tokenizer = self.directory / "bytes.json"
        tokenizer.write_text(json.dumps(BYTES.to_json()))
        source = self.directory / f"{kind}.jsonl"
        says = [say(str(i % 10), "no" if kind == "chat" and i // 10 % 2 else "#### 5") for i in range(100)]
        source.write_text("".join(json.dumps(one) + "\n" for one in says))
        self._call("jaxgpt.prepare", "chat", "--input", str(source), "--out", str(where))
        if kind == "rl":
            if not (self.directory / "chat").exists():
                self._make_data("chat")
            config = self.write_config(self.directory / "base.py", self.directory / "chat", "chat")
            self._call("jaxgpt.train", f"--config={config}", f"--run.dir={self.directory / 'base'}")

    def _call(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        made = subprocess.run(command, env=self.env, cwd=REPO, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr

    def copy_data(self, kind: str, where: Path) -> Path:
        """A copy of the data that a trial may damage."""
        shutil.copytree(self.directory / kind, where)
        return where

    def write_config(self, path: Path, data: Path, kind: str) -> Path:
        vocab_size = 64 if kind == "nanogpt" else 0
        sampling = {"documents": "best_fit", "modded": "bos_aligned"}.get(kind, "random")
        values = {"data": str(data), "sampling": sampling, "vocab_size": vocab_size, "n_steps": N_STEPS, "every": EVERY}
        values |= {"tokenizer": str(self.directory / "bytes.json"), "base": str(self.directory / "base")}
        path.write_text(_CONFIGS.get(kind, _CONFIG).format(**values, eval_every=2 * EVERY))
        return path

    def start(self, framework: str, config: Path, run_dir: Path, *more: str, env=None, **observed) -> Running:
        command = [sys.executable, "-m", FRAMEWORKS[framework], f"--config={config}", f"--run.dir={run_dir}", *more]
        observed.setdefault("patience_s", self.patience_s)
        return Running(command, self.env | (env or {}), **observed)

    def start_pair(self, framework: str, config: Path, run_dir: Path, *more: str, other: tuple = ()) -> list[Running]:
        """Two processes that train one model.

        Args:
          other: further arguments of the second process.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pair = []
        for index in range(2):
            settings, env = [*more, *(other if index else ())], {}
            if framework == "jaxgpt":
                hosts = [f"--hosts.coordinator=127.0.0.1:{port}", "--hosts.count=2", f"--hosts.index={index}"]
                settings += ["--mesh.data=1", "--mesh.fsdp=2", *hosts]
            else:
                names = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
                env = {name: str(value) for name, value in (names | {"MASTER_PORT": port}).items()}
                env |= {"MASTER_ADDR": "127.0.0.1"}
                settings += ["--mesh.data=2"]
            settings += ["--train.micro_batch_size=4"]
            pair.append(self.start(framework, config, run_dir, *settings, env=env))
        return pair

    def wait_for_pair(self, pair: list[Running]) -> list[Ended]:
        """Waits for both. As torchrun and srun do, one that failed ends the other, here after `LAUNCHER_S`."""
        while all(running.is_alive for running in pair) and time.monotonic() < pair[0].begin + pair[0].patience_s:
            time.sleep(0.05)
        failed_at = time.monotonic()
        while any(running.process.poll() for running in pair) and time.monotonic() < failed_at + LAUNCHER_S:
            time.sleep(0.05)
            if not any(running.is_alive for running in pair):
                break
        if any(running.process.poll() for running in pair):
            for running in pair:
                running.send(signal.SIGTERM)
        return [running.wait() for running in pair]

    def straight(self, framework: str, kind: str, *, is_pair: bool = False) -> Straight:
        """The uninterrupted run; trained once, when a trial first needs it. Sets how long others may take."""
        key = framework, kind, is_pair
        if key not in self._straight:
            self.patience_s, slowest_s = FIRST_S, 0.0
            config = self.write_config(self.directory / f"{kind}.py", self.directory / kind, kind)
            for turn in range(2):  # the second finds its programs compiled
                run_dir = self.directory / f"straight_{framework}_{kind}_{is_pair}_{turn}"
                start = self.start_pair if is_pair else self.start
                started = start(framework, config, run_dir)
                ended = [process.wait() for process in (started if isinstance(started, list) else [started])]
                assert [one.code for one in ended] == [0] * len(ended), "".join(one.text for one in ended)
                slowest_s = max(slowest_s, *(one.seconds for one in ended))
                if is_pair:
                    break
            self._straight[key] = Straight(read_losses(run_dir), ended[0].seconds, slowest_s)
            slowest_s = max(straight.slowest_s for straight in self._straight.values())
            self.patience_s = max(PATIENCE_S, PATIENCE_RUNS * slowest_s)
        return self._straight[key]

    def half_way(self, framework: str, kind: str) -> Path:
        """A run that was killed after step 17, with checkpoints 5, 10 and 15. To be copied, not changed."""
        run_dir = self.directory / f"half_{framework}_{kind}"
        if not run_dir.exists():
            self.straight(framework, kind)
            running = self.start(framework, self.directory / f"{kind}.py", run_dir)
            while running.is_alive and not (
                max(read_losses(run_dir), default=0) >= 17 and list_checkpoints(run_dir)[-1:] == [15]
            ):
                time.sleep(0.01)
            running.send(signal.SIGKILL)
            running.wait()
        return run_dir


def read_losses(run_dir: Path) -> dict[int, tuple]:
    """Step -> `_FIGURES` of the lines of metrics.jsonl that can be read, None where a step has none."""
    found = {}
    path = run_dir / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            found[record["step"]] = record["train_loss"], *(record.get(name) for name in _FIGURES[1:])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def list_checkpoints(run_dir: Path) -> list[int]:
    """Steps of the checkpoints that were committed, whatever became of them."""
    names = [path.name for path in (run_dir / "checkpoints").glob("*") if (path / "manifest.json").exists()]
    return sorted(int(name) for name in names if name.isdigit())


@functools.cache
def can_mount() -> bool:
    """Whether this user may mount a file system: root, but not in every container."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as place:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
            return False
        subprocess.run(["umount", "--lazy", place], check=True)
    return True

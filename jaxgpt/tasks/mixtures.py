"""What nanochat's stages train and validate on: which tasks, how many rows, in which order. chat_cpu is jaxgpt's own.

    mixture = Sources(inputs={"own": [path]}).mixture("mid_2025")

References: nanochat c6abcdf scripts/mid_train.py and chat_sft.py; 950a1dc^ and 92d63d4 scripts/chat_sft.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxgpt.errors import InputError
from jaxgpt.tasks import arc, gsm8k, humaneval, mmlu, smoltalk
from jaxgpt.tasks.hub_files import DIRECTORY, HubSplit, hub_rows
from jaxgpt.tasks.own import own_conversations
from jaxgpt.tasks.python_talk import identity, python_talk
from jaxgpt.tasks.spelling import fetch_words, read_words, simple_spelling, spelling_bee
from jaxgpt.tasks.sums import sums
from jaxgpt.tasks.task import Chain, Mixture, Task

Part = str | tuple[str, int]
"""A task's name in `Sources.task`; with a number, only its first rows (or, where it is made of words, so many)."""
OWN = "own"
MIXTURES: dict[str, tuple[Part, ...]] = {
    "mid_2025": (
        "smoltalk", "mmlu-auxiliary", "gsm8k", OWN, OWN, ("simple-spelling", 200_000), ("spelling-bee", 80_000),
    ),
    "mid_2025_val": ("smoltalk-test", ("mmlu-test", 5_200), ("gsm8k-test", 420)),
    "sft_2025": (
        "arc-easy", "arc-challenge", "gsm8k", ("smoltalk", 10_000), OWN, ("simple-spelling", 300),
        ("spelling-bee", 300),
    ),
    "sft_2025_val": ("smoltalk-test",),
    "sft_2026_spelling": (
        "smoltalk", OWN, OWN, *["mmlu-auxiliary"] * 3, *["gsm8k"] * 4, ("simple-spelling", 200_000),
        ("spelling-bee", 80_000),
    ),
    "sft_2026": ("smoltalk", *["mmlu-auxiliary"] * 3, *["gsm8k"] * 4),
    "sft_2026_val": ("smoltalk-test", ("mmlu-test", 5_200), ("gsm8k-test", 420)),
    "chat_cpu": (("python", 410), "identity", ("sums", 40)),
    "chat_cpu_val": (("python-test", 50), ("sums-test", 50)),
}  # fmt: skip
"""Stage -> its parts, in nanochat's order, on which the shuffle depends. A part that stands twice is seen twice."""
RL_STAGES: dict[str, tuple[Part, Part]] = {"rl_gsm8k": ("gsm8k", "gsm8k-test"), "rl_sums": ("sums", "sums-test")}
"""Stages whose questions a model answers itself, in the task's own order: those to train on, and the test."""
HUB_TASKS: dict[str, HubSplit] = {
    "smoltalk": smoltalk.SPLITS["train"], "smoltalk-test": smoltalk.SPLITS["test"],
    "mmlu-auxiliary": mmlu.SPLITS["auxiliary_train"], "mmlu-test": mmlu.SPLITS["test"],
    "arc-easy": arc.SPLITS["ARC-Easy", "train"], "arc-easy-test": arc.SPLITS["ARC-Easy", "test"],
    "arc-challenge": arc.SPLITS["ARC-Challenge", "train"],
    "arc-challenge-test": arc.SPLITS["ARC-Challenge", "test"],
    "gsm8k": gsm8k.SPLITS["train"], "gsm8k-test": gsm8k.SPLITS["test"],
    "humaneval": humaneval.SPLITS["test"],
}  # fmt: skip
MADE = (
    "simple-spelling", "spelling-bee", "spelling-bee-test", "sums", "sums-test", "python", "python-test", "identity",
)  # fmt: skip
"""Tasks whose rows are made here, of words, numbers, or Python's documentation."""
CHAT_CORE = {
    "ARC-Easy": "arc-easy-test", "ARC-Challenge": "arc-challenge-test", "MMLU": "mmlu-test", "GSM8K": "gsm8k-test",
    "HumanEval": "humaneval", "SpellingBee": "spelling-bee-test",
}  # fmt: skip
"""ChatCORE's tasks; SpellingBee (256 examples) only in the era of 2025."""
N_SPELLING_TEST = 256


def read_parts(text: str) -> list[Part]:
    """Tasks as a command line names them: own+gsm8k:200 is all of own and the first 200 rows of gsm8k.

    Raises:
      InputError: what follows a colon is not a positive number.
    """
    parts: list[Part] = []
    for part in text.split("+"):
        name, colon, count = part.partition(":")
        if colon and not (count.isascii() and count.isdigit() and int(count[:18]) > 0):
            raise InputError(f"{part} asks for {count or 'no'} rows; write a positive number, such as {name}:200")
        parts.append((name, int(count[:18])) if colon else name)
    return parts


def read_inputs(given: Sequence[str], flag: str) -> dict[str, Sequence[Path]]:
    """TASK=FILE ... as `Sources.inputs`.

    Args:
      flag: for messages.

    Raises:
      InputError: one names no task, or no file.
    """
    inputs: dict[str, list[Path]] = {}
    for one in given:
        task, equals, path = one.partition("=")
        if not equals:
            raise InputError(f"{flag} {one} names no task; write TASK=FILE, such as own={one}")
        if not Path(path).is_file():
            raise InputError(f"{flag} {one}: {path} is no file; give the local copy of {task}")
        inputs.setdefault(task, []).append(Path(path))
    return dict(inputs)


@dataclass
class Sources:
    """Where tasks come from. Rows are read when a task is asked for, and kept.

    Attributes:
      directory: where splits of the hub and the words are kept.
      inputs: task -> local copies to read instead of the hub; "words" and "own" are tasks here too.
      allow_unconfined: see `jaxgpt.tasks.sandbox.run_python`.
    """

    directory: Path = DIRECTORY
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    allow_unconfined: bool = False
    _rows: dict[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [*HUB_TASKS, OWN, "words"]
        for name in self.inputs:
            if name not in known:
                raise InputError(f"input {name} is not a task; choose one of {', '.join(known)}")

    def task(self, name: str, n_rows: int = 0) -> Task:
        """A task by its name here.

        Args:
          n_rows: only the first ones; of tasks that are made of words, their size.

        Raises:
          InputError: there is no such task, or its rows are not to be had.
        """
        if name == OWN:
            if OWN not in self.inputs:
                raise InputError("own conversations are part of this stage and not given; name a file of JSON lines")
            whole = own_conversations(self._single(OWN))
        elif name in ("simple-spelling", "spelling-bee", "spelling-bee-test"):
            make = simple_spelling if name == "simple-spelling" else spelling_bee
            split: Literal["train", "test"] = "test" if name.endswith("-test") else "train"
            return make(self._words(), n_rows or N_SPELLING_TEST, split)
        elif name in ("sums", "sums-test", "python", "python-test"):
            made = sums if name.startswith("sums") else python_talk
            whole = made("test" if name.endswith("-test") else "train")
            return whole.view(whole.start, whole.start + min(n_rows or len(whole), len(whole)))
        elif name == "identity":
            whole = identity()
        elif name in HUB_TASKS:
            rows = self._rows_of(name)
            if name == "humaneval":
                whole = humaneval.humaneval(rows, allow_unconfined=self.allow_unconfined)
            elif name.startswith("arc-"):
                whole = arc.arc("ARC-Easy" if "easy" in name else "ARC-Challenge", rows)
            else:
                whole = {"smoltalk": smoltalk.smoltalk, "mmlu": mmlu.mmlu, "gsm8k": gsm8k.gsm8k}[name.split("-")[0]](
                    rows
                )
        else:
            raise InputError(f"task {name} does not exist; choose one of {', '.join([*HUB_TASKS, *MADE, OWN])}")
        return whole.view(0, n_rows or None)

    def mixture(self, stage: str) -> Mixture:
        """The conversations of a stage, shuffled.

        Raises:
          InputError: there is no such stage, or a task is not to be had.
        """
        if stage not in MIXTURES:
            raise InputError(f"mixture {stage} does not exist; choose one of {', '.join(MIXTURES)}")
        return self.mixture_of(MIXTURES[stage])

    def chain_of(self, parts: Sequence[Part]) -> Chain:
        """The conversations of these tasks, one after the other. Raises as `task` does."""
        return Chain([self._part(part) for part in parts])

    def mixture_of(self, parts: Sequence[Part]) -> Mixture:
        """The conversations of these tasks, shuffled. Raises as `task` does."""
        return Mixture([self._part(part) for part in parts])

    def _part(self, part: Part) -> Task:
        return self.task(part) if isinstance(part, str) else self.task(*part)

    def _rows_of(self, name: str) -> Sequence[Any]:
        if name not in self._rows:
            self._rows[name] = hub_rows(HUB_TASKS[name], self.directory, self.inputs.get(name, ()))
        return self._rows[name]

    def _words(self) -> Sequence[str]:
        if "words" not in self._rows:
            given = "words" in self.inputs
            self._rows["words"] = read_words(self._single("words")) if given else fetch_words(self.directory)
        return self._rows["words"]

    def _single(self, name: str) -> Path:
        paths = self.inputs[name]
        if len(paths) != 1:
            raise InputError(f"input {name} has {len(paths)} files, not 1; join them")
        return paths[0]

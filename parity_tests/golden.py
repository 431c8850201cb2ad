"""Golden losses: what each shipped config's --smoke run gave in float64 on a CPU, kept in `parity_tests/golden/`.

Both frameworks share schedules, groups, readers and derivation. A bug there moves both curves alike, and parity sees
nothing; these files do. They change only by this command, which shows by how much:

    python -m parity_tests.golden            how far the runs are from the files
    python -m parity_tests.golden --write    writes the files anew
"""

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

from jaxgpt.errors import EXIT_DONE, InputError, run_verb
from jaxgpt.files import write_atomically

REPO = Path(__file__).parents[1]
LONG = ("modded_cpu", "speedrun_a100", "speedrun_h100", "speedrun_rtx4090", "speedrun_v6e8")
"""Record 62, whose programs take minutes to compile: test_modded_training holds it to the original's own figures."""
ALIKE = ("mid_cpu", "mid_d20_2025", "rtx4090_d20_mid", "rtx4090_d20_sft", "sft_cpu", "sft_d12_2026")
"""Stages on conversations, in miniature nearly sft_d20_2025; test_sft has their packing, masks and rates."""
RL = ("rl_cpu", "rl_gsm8k")
"""Fresh weights earn nothing, so these curves would be zeros; test_rl has the step, the rates and runs."""
CONFIGS = [path for path in sorted((REPO / "configs").glob("*.py")) if path.stem not in LONG + ALIKE + RL]
GOLDEN = Path(__file__).parent / "golden"
NAMES = ("train_loss", "grad_norm", "val_loss", "lr", "tokens")
SETTINGS = ("--smoke", "--train.dtype=float64", "--optim.muon.ns_dtype=float64", "--mesh.platform=cpu")


def run_smoke(config: Path) -> dict[str, list[float]]:
    """The metrics of a config's --smoke run, by name; values that a step does not have are left out."""
    from jaxgpt.train import main

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(directory)
        try:
            assert main(["--config", str(config), *SETTINGS]) == EXIT_DONE
        finally:
            os.chdir(before)
        lines = Path(directory, "runs", "smoke", config.stem, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {name: [record[name] for record in records if record.get(name) is not None] for name in NAMES}


def read_golden(config: Path) -> dict[str, list[float]]:
    """The values in the file of a config; none where there is no file."""
    path = GOLDEN / f"{config.stem}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def largest_change(ours: dict[str, list[float]], golden: dict[str, list[float]]) -> tuple[str, float]:
    """The value that is furthest from its golden one, and how far, relative; infinity where there is none."""
    changes = {"": 0.0}
    for name, values in ours.items():
        expected = golden.get(name, [])
        if len(expected) != len(values):
            return name, float("inf")
        for i, (a, b) in enumerate(zip(values, expected, strict=True)):
            changes[f"{name}, record {i + 1}"] = abs(a - b) / max(abs(b), 1e-300)
    worst = max(changes, key=lambda name: changes[name])
    return worst, changes[worst]


def main(args: list[str]) -> int:
    if unknown := set(args) - {"--write"}:
        raise InputError(f"unexpected argument {min(unknown)}; --write is the only one")
    for config in CONFIGS:
        ours = run_smoke(config)
        where, change = largest_change(ours, read_golden(config))
        print(f"{config.stem}: {f'{change:.1e} at {where}' if where else 'no change'}")
        if "--write" in args:
            GOLDEN.mkdir(exist_ok=True)
            write_atomically(GOLDEN / f"{config.stem}.json", json.dumps(ours, indent=1) + "\n")
    return EXIT_DONE


if __name__ == "__main__":
    run_verb(main)

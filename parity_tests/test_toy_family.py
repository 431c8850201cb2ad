"""A new model family is three files and one line in each of three unions; nothing else knows it.

The packages are copied, the files of `toy_family/` put in their places and registered; then the commands run there as a
user would run them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
FILES = {
    "config.py": "jaxgpt/config/families/toy.py",
    "model.py": "jaxgpt/models/toy.py",
    "torch_model.py": "torch_ref/models/toy.py",
}
LINES = {
    "jaxgpt/config/families/__init__.py": "from jaxgpt.config.families.toy import ToyConfig; ModelConfig |= ToyConfig",
    "jaxgpt/models/__init__.py": "from jaxgpt.models.toy import Toy; FAMILIES['toy'] = Toy",
    "torch_ref/models/__init__.py": "from torch_ref.models.toy import Toy; FAMILIES['toy'] = Toy",
}
CONFIG = """
from jaxgpt.config import *
from jaxgpt.config.families.toy import ToyConfig
config = Config(
    model=ToyConfig(vocab_size=300), data=DataConfig(dir="data/none"),
    train=TrainConfig(steps=50, batch_tokens=4096, micro_batch_size=4, dtype="float32"),
    optim=OptimConfig(algorithm="muon"), sample=SampleConfig(every=3),
)
"""
PARITY = """
import dataclasses, json, numpy as np
from jaxgpt.config import load
from jaxgpt.config.flops import flops_per_token
from jaxgpt.data.batch import Batch
from jaxgpt.compare.gates import compare
from jaxgpt.compare.tolerances import PARITY
from jaxgpt.compare.trajectories import draw_params, run_jax, run_torch, settle
config = load("toy.py")
config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, platform="cpu"))
config = settle(config, 4, "float64")
params = draw_params(config)
tokens = np.random.default_rng(0).integers(0, 300, (4, 16, 4, 65)).astype(np.int32)
batches = [Batch(rows) for rows in tokens]
rows = compare(run_jax(config, params, batches), run_torch(config, params, batches), PARITY["float64"])
counted = sum(leaf.size for leaf in params.values())
model = config.model
print(json.dumps({"outside": [row.quantity for row in rows if not row.is_inside], "judged": len(rows),
                  "counted": int(counted), "total": model.count_params().total, "flops": flops_per_token(model)}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("toy")
    for package in ("jaxgpt", "torch_ref", "parity_tests"):
        shutil.copytree(REPO / package, place / package, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    for name, target in FILES.items():
        shutil.copy(REPO / "parity_tests" / "toy_family" / name, place / target)
    for name, line in LINES.items():
        with (place / name).open("a") as file:
            file.write(line + "\n")
    (place / "toy.py").write_text(CONFIG)
    return place


def run(place, *arguments) -> str:
    env = os.environ | {"PYTHONPATH": str(place), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["jaxgpt", pytest.param("torch_ref", marks=pytest.mark.slow)])
def test_it_trains_in_miniature(place, package):
    run_dir = f"--run.dir=runs/{package}"
    out = run(place, "-m", f"{package}.train", "--config", "toy.py", "--smoke", "--train.dtype=float32", run_dir)
    assert "model      toy, " in out and f"runs/{package}" in out
    lines = (place / "runs" / package / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_it_is_sampled_and_evaluated(place):
    run(place, "-m", "jaxgpt.train", "--config", "toy.py", "--smoke", "--run.dir=runs/again")
    assert len(run(place, "-m", "jaxgpt.sample", "--run", "runs/again", "--prompt", "the ", "--max-tokens", "8")) > 8
    assert json.loads(run(place, "-m", "jaxgpt.evaluate", "--run", "runs/again", "--json"))["splits"]["val"]["loss"] > 0


def test_it_is_planned(place):
    out = run(place, "-m", "jaxgpt.plan", "--config", "toy.py", "--device", "a100-40gb", "--estimate")
    flops = 6 * (3 * 4 * 48**2 + 300 * 48) + 12 * 48 * 3 * 2
    assert "toy, 56,496 parameters" in out and "fits" in out
    assert re.search(rf"FLOPs +{flops / 1e6:,.1f} M per token", out)


@pytest.mark.slow
def test_it_agrees_with_its_torch_twin_in_float64(place):
    found = json.loads(run(place, "-c", PARITY))
    assert found["outside"] == [] and found["judged"] >= 8
    assert found["counted"] == found["total"] == 56_496
    assert found["flops"] == 6 * (3 * 4 * 48**2 + 300 * 48) + 12 * 48 * 3 * 2


def test_an_answer_that_is_forgotten_is_an_error(place):
    code = "import jaxgpt.config.families.toy as t; t.ToyConfig.__abstractmethods__ = {'window'}; t.ToyConfig()"
    with pytest.raises(AssertionError, match="abstract"):
        run(place, "-c", code)

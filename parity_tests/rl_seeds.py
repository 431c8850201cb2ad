"""Does RL learn? A tiny model is finetuned on sums, and as often on "I do not know.", then trained on its own answers.

    python -m parity_tests.rl_seeds            three seeds, 60 steps each
    python -m parity_tests.rl_seeds 7 8        these seeds

The reward is the mean over the first and over the last ten steps; it has to rise by 0.2 with each seed.
"""

import json
import sys
import tempfile
from pathlib import Path

from jaxgpt.config import (
    ChatConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GPT2Config,
    LogConfig,
    MeshConfig,
    OptimConfig,
    RLConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    to_source,
)
from jaxgpt.data.tokenizer import BPETokenizer
from jaxgpt.prepare.__main__ import main as prepare
from jaxgpt.tasks.sums import sums
from jaxgpt.train import main as train

SEQ_LEN, N_STEPS, WINDOW = 48, 60, 10
MODEL = GPT2Config(seq_len=SEQ_LEN, n_layer=2, n_head=2, n_embd=64, vocab_size=265)
OPTIM = OptimConfig(lr=3e-3, beta2=0.95, weight_decay=0.0, schedule=ScheduleConfig(kind="trapezoid", warmdown_frac=1.0))


def sft_config(place: Path, n_steps: int = 300) -> Config:
    """Sums and answers that decline them, from fresh weights."""
    return Config(
        run=RunConfig(dir=str(place / "sft"), seed=1),
        model=MODEL,
        data=DataConfig(dir=str(place / "talk"), sampling="conversations", tokenizer=str(place / "bytes.json")),
        chat=ChatConfig(packing="rows"),
        train=TrainConfig(steps=n_steps, batch_tokens=32 * SEQ_LEN, micro_batch_size=32, dtype="float32"),
        optim=OPTIM,
        eval=EvalConfig(every=0, tokens=10 * SEQ_LEN),
        log=LogConfig(every=10),
        mesh=MeshConfig(data=1, platform="cpu"),
    )


def rl_config(place: Path, seed: int, n_steps: int = N_STEPS, **train_settings) -> Config:
    """8 answers to each of 8 sums a step."""
    return Config(
        run=RunConfig(dir=str(place / f"rl_{seed}"), seed=seed),
        model=MODEL,
        data=DataConfig(dir=str(place / "sums"), sampling="conversations"),
        chat=ChatConfig(base=str(place / "sft"), init_lr_frac=0.1),
        rl=RLConfig(samples=8, max_tokens=24, eval_questions=16, eval_samples=4),
        train=TrainConfig(
            steps=n_steps, batch_tokens=64 * SEQ_LEN, micro_batch_size=64, dtype="float32", spike_window=0,
            **train_settings,
        ),
        optim=OPTIM,
        eval=EvalConfig(every=0, tokens=10 * SEQ_LEN),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=0, keep=9, keep_best=False),
        mesh=MeshConfig(data=1, platform="cpu"),
    )  # fmt: skip


def write_base(place: Path) -> None:
    """The data, and the model to start from."""
    tokenizer = BPETokenizer([bytes([i]) for i in range(256)])
    (place / "bytes.json").write_text(json.dumps(tokenizer.to_json()))
    assert prepare(["sums", "--mixture", "rl_sums", "--out", str(place / "sums")]) == 0
    questions = [sums("train")[i]["messages"][0] for i in range(len(sums("train")))]
    declined = [[question, {"role": "assistant", "content": "I do not know."}] for question in questions]
    (place / "own.jsonl").write_text("".join(json.dumps(messages) + "\n" for messages in declined))
    mixture = ["--mixture", "own+sums", "--input", f"own={place / 'own.jsonl'}"]
    assert prepare(["talk", *mixture, "--out", str(place / "talk")]) == 0
    assert run(place, sft_config(place)) == 0


def run(place: Path, config: Config, *args: str) -> int:
    """`jaxgpt train` of a config."""
    path = place / f"{Path(config.run.dir).name}.py"
    path.write_text(to_source(config))
    return train([f"--config={path}", *args])


def rewards(run_dir: Path) -> list[float]:
    """Of each step."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record["reward"] for record in records if "reward" in record]


def main(args: list[str]) -> int:
    is_good = True
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write_base(place)
        said = []
        for seed in map(int, args or ["1", "2", "3"]):
            assert run(place, rl_config(place, seed)) == 0
            found = rewards(place / f"rl_{seed}")
            first, last = (sum(part) / WINDOW for part in (found[:WINDOW], found[-WINDOW:]))
            is_good = is_good and last - first >= 0.2
            said.append(f"seed {seed}: mean reward {first:.3f} -> {last:.3f} in {len(found)} steps")
    print("\n".join(said))
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

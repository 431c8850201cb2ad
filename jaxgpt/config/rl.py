"""The settings of reinforcement learning: how a model's own answers are drawn, and how their rewards are weighed."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxgpt.config.section import Section
from jaxgpt.errors import require


@dataclass(frozen=True)
class RLConfig(Section):
    """Training on the model's own answers to the questions of conversations (jaxgpt rl)."""

    PATH: ClassVar = "rl."

    samples: int = 0
    """Answers to a question, which are compared with each other; 0: the run is no RL."""
    max_tokens: int = 256
    """Tokens of an answer, those of a tool among them."""
    temperature: float = 1.0
    """Of the answers; 1 samples from the distribution that is trained."""
    top_k: int = 50
    """Answers are sampled among this many most likely tokens; 0: all."""
    normalize: Literal["group", "pass"] = "group"
    """Advantages are divided by the trained tokens of all answers to a question (group), or of micro_batch_size of
    them (pass, nanochat)."""
    device_rows: int = 0
    """Answers that a device writes at one time; 0: all of a step."""
    eval_questions: int = 400
    """Questions of val that pass@k is measured on, the first ones; 0: all."""
    eval_samples: int = 8
    """The largest k of pass@k."""

    def __post_init__(self):
        super().__post_init__()
        require(self.samples >= 0, f"rl.samples={self.samples} is negative; 0 is no RL, 16 is usual")
        require(self.samples != 1, "rl.samples=1 has no other answer to compare with; choose 2 or more")
        require(self.max_tokens >= 1, f"rl.max_tokens={self.max_tokens} is below 1; choose a positive number")
        require(self.temperature > 0, f"rl.temperature={self.temperature} gives equal answers; choose 1")
        for name in ("top_k", "device_rows", "eval_questions"):
            value = getattr(self, name)
            require(value >= 0, f"rl.{name}={value} is negative; 0 takes all")
        require(self.eval_samples >= 1, f"rl.eval_samples={self.eval_samples} is below 1; choose a positive number")

    def check_run(self, data: Any, train: Any, optim: Any, checkpoint: Any, seq_len: int) -> None:
        """Raises InputError where other sections of a config do not fit."""
        if not self.samples:
            usual = RLConfig()
            changed = [f"rl.{name}={value}" for name, value in vars(self).items() if value != getattr(usual, name)]
            require(not changed, f"{', '.join(changed)} without rl.samples; set --rl.samples=16")
            return
        ours, group_tokens = f"rl.samples={self.samples}", self.samples * seq_len
        for is_good, message in (
            (data.is_chat, f"{ours} needs conversations, data.sampling={data.sampling} is not; choose conversations"),
            (train.dtype != "float16", f"train.dtype=float16 is not for {ours}; choose bfloat16"),
            (not train.stages, f"train.stages are not for {ours}; leave them out"),
            (not train.spike_rollback, f"train.spike_rollback=True is not for {ours}; leave it out"),
            (not optim.grad_divisor, f"optim.grad_divisor={optim.grad_divisor} is not for {ours}; leave it out"),
            (
                not checkpoint.keep_best,
                f"checkpoint.keep_best=True keeps the lowest loss, which {ours} does not lower; set it to False",
            ),
            (
                self.max_tokens < seq_len,
                f"rl.max_tokens={self.max_tokens} leaves no room for a question in model.seq_len={seq_len}; lower it",
            ),
            (
                train.batch_tokens > 0 and train.batch_tokens % group_tokens == 0,
                f"train.batch_tokens={train.batch_tokens} is not a multiple of {ours} x model.seq_len={seq_len} = "
                f"{group_tokens}, the answers to a question; choose one",
            ),
            (
                self.normalize == "group" or self.samples % train.micro_batch_size == 0,
                f"train.micro_batch_size={train.micro_batch_size} does not divide {ours}, as rl.normalize=pass needs; "
                "choose a divisor",
            ),
        ):
            require(is_good, message)

"""The policy of a run of RL: asks the step's questions of the newest parameters, and makes a batch of the answers.

For the training loop it is a reader of batches. It keeps no place: questions and seeds of a step follow from its
number. Every process draws all answers, its devices computing their part of the rows, and keeps its own.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgpt.chat.advantages import pass_at_k, weigh_tokens
from jaxgpt.chat.rollouts import EVAL_SEED, Question, Rollout, Writer, read_questions, reward_of, seed_of
from jaxgpt.config import Config
from jaxgpt.config.steps import PlannedStep
from jaxgpt.data.batch import Batch
from jaxgpt.data.chat_data import ChatData
from jaxgpt.inference.engine import Engine
from jaxgpt.run.console import working
from jaxgpt.run.opening import Run


class Questions:
    """The questions of a run, read and checked before any device.

    Attributes:
      train: asked in turn, from the first again after the last.
      val: those of pass@k.
    """

    def __init__(self, run: Run, warn: Callable[[str], None]):
        """
        Raises:
          InputError: see `read_questions`.
        """
        config, source = run.config, run.source
        assert isinstance(source.data, ChatData), "Config checks that RL has conversations"
        max_prompt, tokenizer = config.model.seq_len + 1 - config.rl.max_tokens, source.chat_tokenizer()
        with working(f"reading the questions in {config.data.dir}"):
            self.train, n_train = read_questions(source.data.train, tokenizer, max_prompt)
            self.val, n_val = read_questions(source.data.val, tokenizer, max_prompt, config.rl.eval_questions)
        if n_train or n_val:
            warn(
                f"left out {n_train} questions of train and {n_val} of val: with more than {max_prompt} tokens there "
                f"is no room for rl.max_tokens={config.rl.max_tokens} in model.seq_len={config.model.seq_len}"
            )


class Policy:
    """A `Reader` whose rows the model writes.

    Attributes:
      params: of the model that answers; the loop sets them after each step.
    """

    def __init__(self, config: Config, questions: Questions, run: Run, n_devices: int):
        """
        Args:
          config: complete.
          n_devices: that share the rows.
        """
        tokenizer, rl = run.source.chat_tokenizer(), config.rl
        self._config, self._questions = config, questions
        self._pad = tokenizer.special_id("<|assistant_end|>")
        n_all = config.step_questions * rl.samples
        n_rows = min(rl.device_rows * n_devices or n_all, n_all)
        engine = Engine(config.model, {}, dtype=config.train.dtype, n_valid=run.source.n_ids or None)
        self._writer = Writer(engine, tokenizer, rl, n_rows)
        self._metrics: dict[str, float] = {}

    @property
    def params(self) -> Any:
        return self._writer.engine.params

    @params.setter
    def params(self, params: Any) -> None:
        self._writer.engine.params = params

    def read(self, planned: PlannedStep, lo: int, hi: int) -> Batch:
        """Rows lo..hi of each microbatch. Answer s to question q of the step is row q * rl.samples + s of all."""
        began, rl, n_questions = time.perf_counter(), self._config.rl, self._config.step_questions
        places = [planned.step * n_questions + i for i in range(n_questions)]
        asked = [self._questions.train[place % len(self._questions.train)] for place in places]
        seeds = [seed_of(self._config.run.seed, planned.step, place) for place in places]
        answers = self._writer.write(asked, seeds, rl.samples)
        rewards_QS = np.array([[reward_of(q, a) for a in group] for q, group in zip(asked, answers, strict=True)])
        self._metrics = describe_answers(rewards_QS, answers) | {"rollout_s": time.perf_counter() - began}
        batch = pack(
            asked, answers, rewards_QS, planned.seq_len, self._pad,
            pass_rows=self._config.train.micro_batch_size if rl.normalize == "pass" else 0,
        )  # fmt: skip
        shape = (planned.n_micro, planned.n_rows, -1)
        return Batch(batch.tokens.reshape(shape)[:, lo:hi], batch.mask.reshape(shape)[:, lo:hi])

    def metrics(self) -> dict[str, float]:
        """Of the step that was read last, as metrics.jsonl names them."""
        return self._metrics

    @working("answering questions of val")
    def evaluate(self) -> dict[str, float]:
        """pass@k of the parameters, as metrics.jsonl names it: the share of questions of val with a right answer among
        the first k."""
        val, n_samples = self._questions.val, self._config.rl.eval_samples
        answers = self._writer.write(val, [seed_of(EVAL_SEED, 0, i) for i in range(len(val))], n_samples)
        is_right_QS = np.array([[reward_of(q, a) > 0 for a in group] for q, group in zip(val, answers, strict=True)])
        return {f"pass_at_{k}": share for k, share in enumerate(pass_at_k(is_right_QS), 1)}

    def cursors(self) -> dict[str, Any]:
        """Empty: a step's number says what it asks."""
        return {}

    def summary(self) -> str:
        return ""

    def close(self) -> None:
        pass


def describe_answers(rewards_QS: np.ndarray, answers: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Means over the answers of a step.

    reward: the share that is right; answer_tokens: their length; ended: the share that was not cut; signal: the share
    of questions whose answers earn different rewards, without which there is nothing to learn.
    """
    flat = [answer for group in answers for answer in group]
    return {
        "reward": float(rewards_QS.mean()),
        "answer_tokens": float(np.mean([len(answer.ids) for answer in flat])),
        "ended": float(np.mean([answer.has_ended for answer in flat])),
        "signal": float(np.mean(rewards_QS.max(axis=1) > rewards_QS.min(axis=1))),
    }


def pack(
    questions: Sequence[Question], answers: Sequence[Sequence[Rollout]], rewards_QS: np.ndarray, seq_len: int,
    pad: int, *, pass_rows: int = 0,
) -> Batch:  # fmt: skip
    """Rows of prompt, answer and padding, int32 [Q x S, T + 1], and what each target weighs, float32 [Q x S, T].

    Args:
      pass_rows: see `weigh_tokens`.
    """
    n_questions, n_samples = rewards_QS.shape
    tokens_QST = np.full((n_questions, n_samples, seq_len + 1), pad, np.int32)
    masks_QST = np.zeros(tokens_QST.shape, np.uint8)
    for question, group, rows_ST, masks_ST in zip(questions, answers, tokens_QST, masks_QST, strict=True):
        n_prompt = len(question.prompt_ids)
        for answer, row_T, mask_T in zip(group, rows_ST, masks_ST, strict=True):
            n_tokens = n_prompt + len(answer.ids)
            row_T[:n_prompt] = question.prompt_ids
            row_T[n_prompt:n_tokens] = answer.ids
            mask_T[n_prompt:n_tokens] = answer.mask
    weights_QST = weigh_tokens(rewards_QS, masks_QST[:, :, 1:], pass_rows).astype(np.float32)
    return Batch(tokens_QST.reshape(-1, seq_len + 1), weights_QST.reshape(-1, seq_len))

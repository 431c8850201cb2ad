"""From the rewards of answers to what the loss of each token weighs.

The answers to a question are a group. An answer's advantage is its reward minus the group's mean. Nothing is divided by
the standard deviation, and there is no ratio, clip or reference model, since a batch is used for one step. The loss is
- sum(advantage x log p) / tokens, a mean over questions.

nanochat divides by the trained tokens of each forward pass, so that an answer's weight depends on which others share
its pass. Here it is the whole group, unless rl.normalize=pass.

References: GRPO, arXiv:2402.03300; token-level normalization: DAPO, arXiv:2503.14476; nanochat 92d63d4
scripts/chat_rl.py.
"""

import numpy as np


def center(rewards_QS: np.ndarray) -> np.ndarray:
    """Advantages, float64 [Q, S]; exactly 0 in a group of equal rewards."""
    rewards_QS = np.asarray(rewards_QS, np.float64)
    is_equal_Q1 = rewards_QS.max(axis=1, keepdims=True) == rewards_QS.min(axis=1, keepdims=True)
    return np.where(is_equal_Q1, 0, rewards_QS - rewards_QS.mean(axis=1, keepdims=True))


def weigh_tokens(rewards_QS: np.ndarray, masks_QST: np.ndarray, pass_rows: int = 0) -> np.ndarray:
    """What the loss of each target weighs in a step's sum, float64 [Q, S, T].

    Args:
      rewards_QS: of S answers to each of Q questions.
      masks_QST: 1 where the target is a token that the model chose.
      pass_rows: consecutive answers whose tokens are counted together; divides S. 0: all of a group.
    """
    n_questions, n_samples, _ = masks_QST.shape
    pass_rows = pass_rows or n_samples
    assert n_samples % pass_rows == 0, (n_samples, pass_rows)
    n_passes = n_samples // pass_rows
    counts_QP = masks_QST.sum(axis=2, dtype=np.int64).reshape(n_questions, n_passes, pass_rows).sum(axis=2)
    counts_QS = np.repeat(np.maximum(counts_QP, 1), pass_rows, axis=1)
    weights_QS = center(rewards_QS) / (counts_QS * n_passes * n_questions)
    return weights_QS[..., None] * masks_QST


def pass_at_k(is_right_QS: np.ndarray) -> list[float]:
    """Share of questions with a right one among the first k answers, for k = 1 .. S: it never falls with k."""
    return (np.cumsum(is_right_QS, axis=1) > 0).mean(axis=0).tolist()

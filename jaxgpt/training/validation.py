"""Loss on held-out rows, on the devices. The same rows each time, each counted once."""

import numpy as np

from jaxgpt.data.readers import Rows, masks_of
from jaxgpt.parallel.sharding import own_rows, put_rows
from jaxgpt.run.console import working
from jaxgpt.run.evaluation import Evaluation, conclude, make_masks
from jaxgpt.training.step import Evaluator, Step


@working("evaluating")
def evaluate_split(
    step: Step | Evaluator, params, rows: Rows, starts: np.ndarray, n_rows: int, token_bytes: np.ndarray | None = None
) -> Evaluation:
    """Evaluates the rows that `starts` name.

    Args:
      params: sharded as the step wants them.
      rows, starts: see `Source.val_rows`.
      n_rows: rows per forward pass over all devices; the last pass is filled up with rows that do not count.
      token_bytes: UTF-8 bytes of each id, [V]; 0 for special tokens.
    """
    lo, hi = own_rows(step.mesh, n_rows)
    n_tokens = n_bytes = 0
    results = []
    for begin in range(0, len(starts), n_rows):
        chosen = starts[begin : begin + n_rows]
        filled = np.concatenate([chosen, np.repeat(chosen[-1:], n_rows - len(chosen))])
        batch_BT = rows.at(filled)
        masks_BTC, n_more = make_masks(batch_BT[:, 1:], len(chosen), token_bytes, masks_of(rows, filled))
        n_tokens, n_bytes = n_tokens + int(masks_BTC[..., 0].sum()), n_bytes + n_more
        placed = put_rows((batch_BT[lo:hi], masks_BTC[lo:hi]), n_rows, step.mesh)
        results.append(step.evaluate(params, *placed))
    nats, text_nats = np.sum([np.asarray(result, np.float64) for result in results], axis=0).tolist()
    return conclude(nats, text_nats, n_tokens, n_bytes)

"""jaxgpt/validation.py in PyTorch: each process evaluates its own rows, the sums are added once at the end."""

import numpy as np
import torch

from jaxgpt.data.readers import Rows, masks_of
from jaxgpt.run.console import working
from jaxgpt.run.evaluation import Evaluation, conclude, make_masks
from torch_ref.parallel.sharding import add_over_processes, own_rows, put_rows
from torch_ref.training.step import Step


@working("evaluating")
def evaluate_split(
    step: Step, params, rows: Rows, starts: np.ndarray, n_rows: int, token_bytes: np.ndarray | None = None
) -> Evaluation:
    lo, hi = own_rows(step.mesh, n_rows)
    n_tokens = n_bytes = 0
    results = []
    for begin in range(0, len(starts), n_rows):
        chosen = starts[begin : begin + n_rows]
        filled = np.concatenate([chosen, np.repeat(chosen[-1:], n_rows - len(chosen))])[lo:hi]
        batch_BT = rows.at(filled)
        masks_BTC, n_more = make_masks(batch_BT[:, 1:], len(chosen) - lo, token_bytes, masks_of(rows, filled))
        n_tokens, n_bytes = n_tokens + int(masks_BTC[..., 0].sum()), n_bytes + n_more
        results.append(step.evaluate(params, put_rows(batch_BT, step.mesh), put_rows(masks_BTC, step.mesh)))
    nats, text_nats = np.sum([result.double().cpu().numpy() for result in results], axis=0).tolist()
    sums = torch.tensor([nats, text_nats, n_tokens, n_bytes], dtype=torch.float64)
    add_over_processes([sums])
    nats, text_nats, n_tokens, n_bytes = sums.tolist()
    return conclude(nats, text_nats, int(n_tokens), int(n_bytes))

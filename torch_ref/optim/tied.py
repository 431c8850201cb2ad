"""jaxgpt/optim/tied.py in PyTorch."""

import torch

from jaxgpt.config.param_groups import TIED
from torch_ref.optim.transformation import Transformation, write


def tied(transform: Transformation, until: int) -> Transformation:
    copy, head = TIED

    def update(grads, state, params, *, hyper, is_finite):
        is_tied = state["count"] < until
        both = torch.where(is_tied, grads[head] + grads[copy], grads[head])
        transform.update({**grads, head: both}, state, params, hyper=hyper, is_finite=is_finite)
        for leaves in (params, *state.values()):
            if isinstance(leaves, dict) and copy in leaves:
                write(leaves[copy], leaves[head], is_finite & is_tied)

    return Transformation(transform.init, update)

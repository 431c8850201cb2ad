"""jaxgpt/models/cache.py in PyTorch: the cache is written in place, and a write over its end is an IndexError."""

import torch


def query_positions(x_BT, offset_B=None):
    positions_1T = torch.arange(x_BT.shape[1], device=x_BT.device)[None]
    return positions_1T if offset_B is None else offset_B[:, None] + positions_1T


def write_rows(old_BS, new_BT, offset_B):
    rows_B1 = torch.arange(new_BT.shape[0], device=new_BT.device)[:, None]
    old_BS[rows_B1, query_positions(new_BT, offset_B)] = new_BT
    return old_BS

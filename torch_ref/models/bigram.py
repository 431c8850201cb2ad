"""jaxgpt/models/bigram.py in PyTorch."""

import torch

FACTOR, FACTOR_BEFORE = 36313, 27191


def bigram_ids(tokens_BT, before_BT, positions_BT, n_rows):
    last = n_rows - 1
    tokens_BT = tokens_BT.to(torch.int32)
    before_BT = torch.where(positions_BT == 1, last, before_BT.to(torch.int32))
    mixed_BT = torch.bitwise_xor(FACTOR * tokens_BT, FACTOR_BEFORE * before_BT)
    return torch.where(positions_BT == 0, last, torch.remainder(mixed_BT, last))

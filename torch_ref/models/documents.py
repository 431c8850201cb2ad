"""jaxgpt/models/documents.py in PyTorch."""

import torch


def document_begins(tokens_BT, bos_id):
    positions_T = torch.arange(tokens_BT.shape[1], dtype=torch.int32, device=tokens_BT.device)
    return torch.cummax(torch.where(tokens_BT == bos_id, positions_T, 0), dim=1).values

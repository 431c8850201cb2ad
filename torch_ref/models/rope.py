"""jaxgpt/models/rope.py in PyTorch."""

import torch


def rotary_tables(positions_BTN, frequencies_R, dtype):
    angles_BTNR = positions_BTN[..., None].to(frequencies_R.dtype) * frequencies_R
    return torch.cos(angles_BTNR).to(dtype), torch.sin(angles_BTNR).to(dtype)


def rotate(x_BTNH, tables, layout):
    cos_BTNR, sin_BTNR = (table.to(torch.promote_types(x_BTNH.dtype, torch.float32)) for table in tables)
    half = x_BTNH.shape[-1] // 2
    if layout == "pairs":
        a_BTNR, b_BTNR = x_BTNH[..., 0::2], x_BTNH[..., 1::2]
    else:
        a_BTNR, b_BTNR = x_BTNH[..., :half], x_BTNH[..., half:]
    turned = (a_BTNR * cos_BTNR + b_BTNR * sin_BTNR, b_BTNR * cos_BTNR - a_BTNR * sin_BTNR)
    if layout == "pairs":
        return torch.stack(turned, dim=-1).reshape(x_BTNH.shape).to(x_BTNH.dtype)
    return torch.cat(turned, dim=-1).to(x_BTNH.dtype)

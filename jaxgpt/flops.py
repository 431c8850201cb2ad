"""Parameters and floating-point operations of a model, and MFU.

Model FLOPs: a multiply-add is two, the backward pass costs twice the forward, recomputation does not count.
Two conventions are in use and both are given: `full` counts attention over the whole T x T square
(PaLM, arXiv:2204.02311 appendix B, and nanoGPT); `causal` counts the half below the diagonal.
"""

from dataclasses import dataclass

from jaxgpt.config import GPT2Config
from jaxgpt.hardware import find_device


@dataclass(frozen=True)
class ParamCount:
    """Numbers of parameters. nanoGPT reports `total - wpe`, and counts the tied head once, as wte."""

    total: int
    wpe: int


def count_params(model: GPT2Config, vocab_size: int) -> ParamCount:
    """Parameters of a model whose embedding has `vocab_size` rows."""
    n_embd, has_bias = model.n_embd, int(model.bias)
    norm = n_embd * (1 + has_bias)
    matrices = (3 + 1 + 4 + 4) * n_embd**2
    biases = (3 + 1 + 4 + 1) * n_embd * has_bias
    block = matrices + biases + 2 * norm
    wpe = model.seq_len * n_embd
    return ParamCount(total=vocab_size * n_embd + wpe + model.n_layer * block + norm, wpe=wpe)


def flops_per_token(model: GPT2Config, vocab_size: int, *, causal: bool = False) -> float:
    """FLOPs to train on one token: 6 N + 12 n_layer n_embd seq_len, N without position embeddings."""
    params = count_params(model, vocab_size)
    attention = 12 * model.n_layer * model.n_embd * model.seq_len
    return 6 * (params.total - params.wpe) + (attention / 2 if causal else attention)


def mfu(flops_per_s: float, device_kind: str, n_devices: int, dtype: str) -> float | None:
    """Model FLOP utilisation in [0, 1]: achieved over peak. None where the device's peak is not known."""
    device = find_device(device_kind)
    peak = device.peak_flops.get(dtype) if device else None
    return flops_per_s / (n_devices * peak) if peak else None

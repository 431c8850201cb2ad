"""Parameters and floating-point operations of a model, and MFU.

Model FLOPs: a multiply-add is two, the backward pass costs twice the forward, recomputation does not count.
Two conventions are in use and both are given: `full` counts attention over the whole T x T square
(PaLM, arXiv:2204.02311 appendix B, and nanoGPT); `causal` counts the half below the diagonal.
"""

from jaxgpt.config.families import ModelConfig
from jaxgpt.config.hardware import find_device


def flops_per_token(model: ModelConfig, *, causal: bool = False) -> float:
    """FLOPs to train on one token: 6 per linear parameter, 12 n_embd for each key seen in each layer.

    Args:
      model: complete.
      causal: count only the keys at or before a query; else as many as the original counts (`counted_keys`).
    """
    seq_len, n_keys = model.seq_len, 0.0
    for layer in range(model.n_layer):
        window = min(model.window(layer), seq_len)
        n_keys += window - window**2 / (2 * seq_len) if causal else model.counted_keys(layer)
    return 6 * model.count_params().linear + 12 * model.n_embd * n_keys


def mfu(flops_per_s: float, device_kind: str, n_devices: int, dtype: str) -> float | None:
    """Model FLOP utilisation in [0, 1]: achieved over peak. None where the device's peak is not known."""
    device = find_device(device_kind)
    peak = device.peak_flops.get(dtype) if device else None
    return flops_per_s / (n_devices * peak) if peak else None

"""Parameters and floating-point operations of a model, and MFU.

Model FLOPs: a multiply-add is two, the backward pass costs twice the forward, recomputation does not count.
Two conventions are in use and both are given: `full` counts attention over the whole T x T square
(PaLM, arXiv:2204.02311 appendix B, and nanoGPT); `causal` counts the half below the diagonal.
"""

from dataclasses import dataclass

from jaxgpt.config.families import GPT2Config, ModelConfig, NanochatConfig
from jaxgpt.config.families.nanochat import GATE_CHANNELS
from jaxgpt.config.hardware import find_device


@dataclass(frozen=True)
class ParamCount:
    """Numbers of parameters.

    Attributes:
      total: all of them; a tied head counts once.
      wpe: learned positions. nanoGPT reports `total - wpe`.
      linear: those that a token is multiplied with, the head included.
      scaling: those that nanochat measures horizons in: all in 2025; blocks and head in 2026.
    """

    total: int
    wpe: int
    linear: int
    scaling: int


def count_params(model: ModelConfig, vocab_size: int) -> ParamCount:
    """Parameters of a model whose embedding has `vocab_size` rows."""
    return _count_nanochat(model, vocab_size) if isinstance(model, NanochatConfig) else _count_gpt2(model, vocab_size)


def _count_gpt2(model: GPT2Config, vocab_size: int) -> ParamCount:
    n_embd, has_bias = model.n_embd, int(model.bias)
    norm = n_embd * (1 + has_bias)
    matrices = (3 + 1 + 4 + 4) * n_embd**2
    biases = (3 + 1 + 4 + 1) * n_embd * has_bias
    block = matrices + biases + 2 * norm
    wpe = model.seq_len * n_embd
    total = vocab_size * n_embd + wpe + model.n_layer * block + norm
    return ParamCount(total=total, wpe=wpe, linear=total - wpe, scaling=total)


def _count_nanochat(model: NanochatConfig, vocab_size: int) -> ParamCount:
    n_embd, kv_dim = model.n_embd, model.n_kv_head * model.head_dim
    n_value_embeds = sum(model.has_value_embed(layer) for layer in range(model.depth))
    gates = n_value_embeds * GATE_CHANNELS["value_embed"] * model.n_kv_head
    blocks = model.depth * (2 * n_embd**2 + 2 * n_embd * kv_dim + 8 * n_embd**2) + gates
    head = vocab_size * n_embd
    total = blocks + 2 * head
    if not model.is_2026:
        return ParamCount(total=total, wpe=0, linear=blocks + head, scaling=total)
    smear_gate, lambdas = GATE_CHANNELS["smear"], 2 * model.depth + 2  # of residual and x0; of smear and backout
    total += n_value_embeds * vocab_size * kv_dim + smear_gate + lambdas
    return ParamCount(total=total, wpe=0, linear=blocks + head + smear_gate, scaling=blocks + head)


def flops_per_token(model: ModelConfig, vocab_size: int, *, causal: bool = False) -> float:
    """FLOPs to train on one token: 6 per linear parameter, 12 n_embd for each key seen in each layer.

    A query of a layer with a window sees that many keys; causal counts only those at or before it.
    """
    params = count_params(model, vocab_size)
    seq_len = model.seq_len
    n_keys = 0.0
    for layer in range(model.n_layer):
        window = min(model.window(layer), seq_len) if isinstance(model, NanochatConfig) else seq_len
        n_keys += window - window**2 / (2 * seq_len) if causal else window
    return 6 * params.linear + 12 * model.n_embd * n_keys


def mfu(flops_per_s: float, device_kind: str, n_devices: int, dtype: str) -> float | None:
    """Model FLOP utilisation in [0, 1]: achieved over peak. None where the device's peak is not known."""
    device = find_device(device_kind)
    peak = device.peak_flops.get(dtype) if device else None
    return flops_per_s / (n_devices * peak) if peak else None

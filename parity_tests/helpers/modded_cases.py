"""The reduced models on which the originals' digests were measured, run in JAX and in PyTorch."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgpt.config import ModdedConfig
from jaxgpt.models import Model, layers, loss
from jaxgpt.models import modded as jax_modded
from parity_tests.helpers.modded_layout import fill, from_original, original_shapes, to_original
from torch_ref.models import Model as TorchModel
from torch_ref.models import layers as torch_layers
from torch_ref.models import loss as torch_loss
from torch_ref.models import modded as torch_modded
from torch_ref.models.weights import to_numpy, to_torch

MODULES: dict[str, Any] = {"jax": jax_modded, "torch": torch_modded}
"""The module of the family's math in each framework."""
BLOCK = 4
DOCUMENTS = (0, 19, 20, 53, 80)
BOS = 255
MTP_WEIGHTS = (1.0, 0.5, 0.2)
"""Of this digest, in double; in training they are float32, which moves the loss by 2e-9."""


def record(name, **changes) -> ModdedConfig:
    """Records 62 and 46 at the digests' size, windows of 1 and 3 blocks of 4."""
    sizes = {
        "vocab_size": 256, "n_embd": 96, "head_dim": 16, "seq_len": 96, "block_tokens": BLOCK, "bos_id": BOS,
        "short_window": BLOCK + 1, "long_window": 3 * BLOCK + 1,
    }  # fmt: skip
    return ModdedConfig(**{"record": name, **sizes, **changes}).complete(0)


def track3() -> ModdedConfig:
    return ModdedConfig(
        record="track3", vocab_size=512, n_layer=2, n_embd=64, head_dim=32, seq_len=32, paired_heads="--",
        value_embeds="--",
    ).complete(0)  # fmt: skip


@functools.cache
def params_of(name) -> dict[str, np.ndarray]:
    """The digests' fill, as jaxgpt's parameters."""
    config, seed = (track3(), 36) if name == "track3" else (record(name), int(name))
    return from_original(config, fill_record(name, seed))


def fill_record(name, seed) -> dict[str, np.ndarray]:
    """The originals' tensors with the digests' fill."""
    config = track3() if name == "track3" else record(name)
    return fill(original_shapes(config), seed, functools.partial(_offset_and_scale, name))


def _offset_and_scale(name, tensor) -> tuple[float, float]:
    if name == "track3":
        return (1, 0.1) if "gains" in tensor else (0, 0.1 if "bias" in tensor else 1 if "embed" in tensor else 0.08)
    if tensor in ("scalars", "x0_lambdas"):
        return (0.5 if tensor == "scalars" else 0.1, 0.1)
    return 0, 0.5 if "gate" in tensor else 0.3 if "embed" in tensor or tensor == "lm_head.weight" else 0.08


@functools.cache
def packed_tokens() -> np.ndarray:
    """[1, 97] ids: five documents."""
    tokens = np.random.default_rng(7).integers(0, BOS, size=97)
    tokens[list(DOCUMENTS)] = BOS
    return tokens[None].astype(np.int32)


def track3_tokens(n_rows) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of the first rows of 32 tokens."""
    tokens = np.random.default_rng([36, 100]).integers(0, 512, size=641).astype(np.int32)
    return tokens[: 32 * n_rows].reshape(-1, 32), tokens[1 : 32 * n_rows + 1].reshape(-1, 32)


def weigh_targets(weights, n_tokens, is_inside=None) -> np.ndarray:
    """Weights [T, T] of position t's targets by the position s of the input before each: s = t + k."""
    matrix = sum(weight * np.eye(n_tokens, k=k) for k, weight in enumerate(weights))
    return np.asarray(matrix) if is_inside is None else matrix * is_inside


def run(framework, config, params, inputs, targets, *, target_weights=None, dtype="float64") -> dict[str, Any]:
    """Raw logits, losses and, in the originals' layout, gradients of the summed loss.

    Args:
      target_weights: of `weigh_targets`, for several targets a position; None: the product's next-token loss.
    """
    route = {"jax": _run_jax, "torch": _run_torch}[framework]
    logits, row_losses, total, grads = route(config, params, inputs, targets, target_weights, dtype)
    return {
        "logits": np.asarray(logits, np.float64), "row_losses": row_losses, "loss": float(total),
        "grads": to_original(config, {path: np.asarray(grad, np.float64) for path, grad in grads.items()}),
    }  # fmt: skip


def _run_jax(config, params, inputs, targets, target_weights, dtype):
    model, param_dtype = Model(config, dtype=jnp.dtype(dtype)), "float64" if dtype == "float64" else "float32"

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def losses(params):
        module = model.bind(params)
        x_BTD, weight_VD = module(inputs), module.head_weight()
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD.astype(x_BTD.dtype))
        if target_weights is None:
            total, _ = loss.cross_entropy(x_BTD, weight_VD, targets, softcap=config.logit_cap)
            return total, (logits_BTV, loss.token_losses(x_BTD, weight_VD, targets, softcap=config.logit_cap))
        capped_TV = layers.softcap(logits_BTV[0].astype(param_dtype), config.logit_cap)
        log_probs_TT = jax.nn.log_softmax(capped_TV, axis=-1)[:, targets[0]]
        row_losses_T = -(target_weights * log_probs_TT).sum(axis=1)
        return row_losses_T.sum(), (logits_BTV, row_losses_T)

    (total, (logits_BTV, row_losses)), grads = losses({k: jnp.asarray(p, param_dtype) for k, p in params.items()})
    return logits_BTV, np.asarray(row_losses), total, grads


def _run_torch(config, params, inputs, targets, target_weights, dtype):
    param_dtype = torch.float64 if dtype == "float64" else torch.float32
    tensors = {k: torch.nn.Parameter(p.to(param_dtype)) for k, p in to_torch(params).items()}
    module = TorchModel(config, dtype=getattr(torch, dtype)).bind(tensors)
    x_BTD, weight_VD, targets_BT = module(torch.tensor(inputs)), module.head_weight(), torch.tensor(targets).long()
    logits_BTV = torch.einsum("BTD,VD->BTV", x_BTD, weight_VD.to(x_BTD.dtype))
    if target_weights is None:
        total, _ = torch_loss.cross_entropy(x_BTD, weight_VD, targets_BT, softcap=config.logit_cap)
        with torch.no_grad():
            row_losses = torch_loss.token_losses(x_BTD, weight_VD, targets_BT, softcap=config.logit_cap)
    else:
        capped_TV = torch_layers.softcap(logits_BTV[0].to(param_dtype), config.logit_cap)
        log_probs_TT = torch.log_softmax(capped_TV, dim=-1)[:, targets_BT[0]]
        row_losses = -(torch.tensor(target_weights) * log_probs_TT).sum(dim=1)
        total = row_losses.sum()
    total.backward()
    grads = to_numpy({k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in tensors.items()})
    return logits_BTV.detach().double().numpy(), row_losses.detach().numpy(), total.detach(), grads


def record_layers(framework, config, params, inputs, monkeypatch) -> dict[str, list[np.ndarray]]:
    """What goes into layer 0 ("inputs" has all layers), and what comes out of each layer and each attention."""
    seen: dict[str, list[Any]] = {"inputs": [], "outputs": [], "attention": []}
    module, name = MODULES[framework], {"jax": "__call__", "torch": "forward"}[framework]
    block, attention = getattr(module.Block, name), getattr(module.CausalSelfAttention, name)

    def see_block(self, x_BTD, *args):
        seen["inputs"].append(x_BTD)
        x_BTD, cache = block(self, x_BTD, *args)
        seen["outputs"].append(x_BTD)
        return x_BTD, cache

    def see_attention(self, *args):
        y_BTD, cache = attention(self, *args)
        seen["attention"].append(y_BTD)
        return y_BTD, cache

    monkeypatch.setattr(module.Block, name, see_block)
    monkeypatch.setattr(module.CausalSelfAttention, name, see_attention)
    forward(framework, config, params, inputs)
    return {kind: [np.asarray(x) for x in xs] for kind, xs in seen.items()}


def forward(framework, config, params, inputs) -> np.ndarray:
    """Raw logits in float64, operation by operation, so that what is patched is run."""
    if framework == "torch":
        tensors = {k: torch.nn.Parameter(p, requires_grad=False) for k, p in to_torch(params).items()}
        module = TorchModel(config, dtype=torch.float64).bind(tensors)
        with torch.no_grad():
            return torch.einsum("BTD,VD->BTV", module(torch.tensor(inputs)), module.head_weight()).numpy()
    module = Model(config, dtype=jnp.float64).bind({k: jnp.asarray(p) for k, p in params.items()})
    return np.array(jnp.einsum("BTD,VD->BTV", module(inputs), module.head_weight()))


def cap_by_hand(config, logits) -> np.ndarray:
    """The softcap once more, in numpy."""
    cap = config.logit_cap
    if cap.kind == "tanh":
        return cap.scale * np.tanh(logits / cap.scale)
    return cap.scale / (1 + np.exp(-(logits + cap.shift) / cap.width))


def weighted_loss(config, logits_BTV, targets_BT, target_weights) -> float:
    """The summed loss of several targets a position, in numpy."""
    capped_TV = cap_by_hand(config, logits_BTV)[0]
    log_probs_TV = capped_TV - np.log(np.exp(capped_TV).sum(axis=-1, keepdims=True))
    return -float((target_weights * log_probs_TV[:, targets_BT[0]]).sum())


def with_windows(config, short, long, yarn=()) -> ModdedConfig:
    """The config with windows of so many blocks."""
    return dataclasses.replace(config, short_window=BLOCK * short + 1, long_window=BLOCK * long + 1, yarn=yarn)

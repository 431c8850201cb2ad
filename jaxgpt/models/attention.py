"""Causal attention behind one signature, with three ways to compute it.

`xla` writes the T x S scores out and runs everywhere; long rows with windows it takes in blocks of queries, on a CPU
all rows (`causal_blocks`), and on one CPU a cache in blocks of keys (`filled`). `cudnn` (NVIDIA, flash) and `splash`
(TPU, Pallas) never hold them, so their memory grows with T instead of T squared. All three agree; tests compare them.
Models whose rows are documents have their own three ways, in `packed`.
The choice is made once, on the host, by `choose_attention`: never silently, the run's header prints it.

References: Vaswani et al., arXiv:1706.03762; Dao et al., arXiv:2205.14135.
"""

import functools

import jax
import jax.numpy as jnp

from jaxgpt.config import Config
from jaxgpt.config.activations import SCAN_FROM
from jaxgpt.errors import InputError
from jaxgpt.models.cache import query_positions
from jaxgpt.models.causal_blocks import causal_blocks
from jaxgpt.models.filled import filled_attention
from jaxgpt.models.packed import choose_packed
from jaxgpt.models.packed_scan import MASKED, packed_scan
from jaxgpt.models.splash import splash
from jaxgpt.parallel.sharding import per_shard


def choose_attention(config: Config, platform: str, device_kind: str = "") -> tuple[str, str]:
    """The implementation for a run on a platform (cpu, gpu, tpu), and in words why.

    Args:
      device_kind: as JAX names it, "NVIDIA A100-SXM4-80GB"; empty: no card in particular.

    Raises:
      InputError: the one asked for cannot run there.
    """
    model, wanted, dtype = config.model, config.train.attention, config.train.dtype
    head_dim = model.head_dim
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    if model.HAS_PACKED_ATTENTION:
        return choose_packed(config, platform, device_kind)
    dropout = (model.dropout > 0, f"model.dropout={model.dropout} needs the attention probabilities")
    obstacles = {
        "cudnn": [
            (platform != "gpu", f"the platform is {platform}, not gpu"),
            (dtype not in ("bfloat16", "float16"), f"train.dtype={dtype}; it takes bfloat16 or float16"),
            (head_dim % 8 != 0 or head_dim > 128, f"head_dim={head_dim}; it takes multiples of 8 up to 128"),
            dropout,
        ],
        "splash": [
            (platform != "tpu", f"the platform is {platform}, not tpu"),
            (model.seq_len % 128 != 0, f"model.seq_len={model.seq_len}; it takes multiples of 128"),
            dropout,
        ],
        "triton": [(True, f"model.family={model.family} has no documents to tell apart")],
        "xla": [],
    }  # fmt: skip
    flash = {"gpu": "cudnn", "tpu": "splash"}.get(platform)
    asked = flash if wanted == "auto" else wanted
    if asked is None:
        return "xla", f"no flash attention on {platform}"
    reasons = [reason for is_met, reason in obstacles[asked] if is_met]
    if not reasons:
        return asked, "flash" if wanted == "auto" else "as configured"
    if wanted == "auto":
        return "xla", f"{asked} cannot: {reasons[0]}; memory grows with seq_len squared"
    raise InputError(f"train.attention={wanted} cannot run: {reasons[0]}; --train.attention=xla can")


def attention(
    q_BTNH, k_BSKH, v_BSKH, *, implementation="xla", offset_B=None, window=None, dropout_rate=0.0, dropout_key=None
):
    """Causal softmax attention: query t of a row sees its keys 0 .. offset + t, or the last `window` of them.

    Args:
      q_BTNH, k_BSKH, v_BSKH: one dtype; the softmax runs in float32 or wider. K divides N: query head n sees the keys
        and values of head n // (N / K).
      implementation: xla, cudnn or splash.
      offset_B: position of each row's first query among its keys, with a cache, and then with xla, and on a CPU without
        a gradient; None: 0.
      window: keys that a query sees, itself included; None: all.
      dropout_rate: on the probabilities, when dropout_key is given; xla only.

    Returns:
      An array like q_BTNH, scaled by 1 / sqrt(H) before the softmax.
    """
    assert offset_B is None or implementation == "xla", "queries after a cache take xla"
    if implementation == "cudnn":
        local = None if window is None else (window - 1, 0)
        return per_shard(
            functools.partial(
                jax.nn.dot_product_attention, is_causal=True, local_window_size=local, implementation="cudnn"
            )
        )(q_BTNH, k_BSKH, v_BSKH)
    if implementation == "splash":
        k_BSNH, v_BSNH = (_repeat_heads(x, q_BTNH.shape[2]) for x in (k_BSKH, v_BSKH))
        return per_shard(functools.partial(splash, window=window))(q_BTNH, k_BSNH, v_BSNH)
    assert implementation == "xla", implementation
    has_dropout = dropout_key is not None and dropout_rate > 0
    if offset_B is None and not has_dropout:
        k_BSNH, v_BSNH = (_repeat_heads(x, q_BTNH.shape[2]) for x in (k_BSKH, v_BSKH))
        if window is not None and window < q_BTNH.shape[1] >= SCAN_FROM:
            begin_BT = jnp.zeros(q_BTNH.shape[:2], jnp.int32)
            return packed_scan(q_BTNH, k_BSNH, v_BSNH, begin_BT, window=window, scale=q_BTNH.shape[-1] ** -0.5)
        return jax.lax.platform_dependent(
            q_BTNH, k_BSNH, v_BSNH,
            cpu=functools.partial(causal_blocks, window=window),
            default=functools.partial(_xla, offset_B=None, window=window, dropout_rate=0.0, dropout_key=None),
        )  # fmt: skip
    if offset_B is not None and jax.sharding.get_abstract_mesh().size <= 1:
        return jax.lax.platform_dependent(
            q_BTNH, k_BSKH, v_BSKH, offset_B,
            cpu=functools.partial(filled_attention, window=window),
            default=functools.partial(_xla, window=window, dropout_rate=dropout_rate, dropout_key=dropout_key),
        )  # fmt: skip
    return _xla(q_BTNH, k_BSKH, v_BSKH, offset_B, window, dropout_rate, dropout_key)


def _xla(q_BTNH, k_BSKH, v_BSKH, offset_B, window, dropout_rate, dropout_key):
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    k_BSNH, v_BSNH = (_repeat_heads(x, q_BTNH.shape[2]) for x in (k_BSKH, v_BSKH))
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=wide)
    distance_BTS = query_positions(q_BTNH, offset_B)[..., None] - jnp.arange(k_BSKH.shape[1])
    is_seen_BTS = distance_BTS >= 0
    if window is not None:
        is_seen_BTS &= distance_BTS < window
    scores_BNTS = jnp.where(is_seen_BTS[:, None], scores_BNTS * q_BTNH.shape[-1] ** -0.5, MASKED)
    probs_BNTS = jax.nn.softmax(scores_BNTS, axis=-1)
    if dropout_key is not None and dropout_rate > 0:
        keep_BNTS = jax.random.bernoulli(dropout_key, 1 - dropout_rate, probs_BNTS.shape)
        probs_BNTS = jnp.where(keep_BNTS, probs_BNTS / (1 - dropout_rate), 0)
    return jnp.einsum("BNTS,BSNH->BTNH", probs_BNTS.astype(v_BSNH.dtype), v_BSNH)


def _repeat_heads(x_BSKH, n_heads):
    """Each head of keys or values as often as query heads share it."""
    n_repeats = n_heads // x_BSKH.shape[2]
    return x_BSKH if n_repeats == 1 else jnp.repeat(x_BSKH, n_repeats, axis=2)

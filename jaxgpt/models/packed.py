"""Attention inside documents: rows are packed, every document begins with BOS, and none sees another.

What a query sees is a range of keys, from `max(begin of its document, t - window + 1)` to itself, so the mask is one
vector of integers and nobody writes T x T of anything. Three forms of one function, chosen once on the host: `xla`, a
loop over blocks of queries, anywhere; `triton`, a Pallas kernel for NVIDIA cards; `splash` on TPU.

References: modded-nanogpt's FlexAttention and flash-attention varlen masks (github.com/KellerJordan/modded-nanogpt).
"""

import functools

import jax
import jax.numpy as jnp

from jaxgpt.config import Config
from jaxgpt.errors import InputError
from jaxgpt.models import packed_splash, packed_triton
from jaxgpt.models.cache import query_positions
from jaxgpt.models.packed_scan import MASKED, packed_scan
from jaxgpt.parallel.sharding import per_shard


def choose_packed(config: Config, platform: str, device_kind: str = "") -> tuple[str, str]:
    """`attention.choose_attention` for a model with documents.

    Raises:
      InputError: the form asked for cannot run there.
    """
    model, wanted, dtype = config.model, config.train.attention, config.train.dtype
    seq_len, head_dim = model.seq_len, model.head_dim
    refusal = packed_triton.refusal(device_kind) if platform == "gpu" else ""
    widths = ", ".join(map(str, packed_triton.HEAD_DIMS))
    obstacles = {
        "cudnn": [(True, f"model.family={model.family} has documents, which it cannot tell apart")],
        "triton": [
            (platform != "gpu", f"the platform is {platform}, not gpu"),
            (dtype not in ("bfloat16", "float16"), f"train.dtype={dtype}; it takes bfloat16 or float16"),
            (head_dim not in packed_triton.HEAD_DIMS, f"head_dim={head_dim}; it takes {widths}"),
            (seq_len % packed_triton.ROW_MULTIPLE != 0,
             f"model.seq_len={seq_len}; it takes multiples of {packed_triton.ROW_MULTIPLE}"),
            (bool(refusal), refusal),
        ],
        "splash": [
            (platform != "tpu", f"the platform is {platform}, not tpu"),
            (seq_len % packed_splash.ROW_MULTIPLE != 0,
             f"model.seq_len={seq_len}; it takes multiples of {packed_splash.ROW_MULTIPLE}"),
            (seq_len > packed_splash.LONGEST_ROW,
             f"model.seq_len={seq_len}; it takes up to {packed_splash.LONGEST_ROW}, in more rows"),
        ],
        "xla": [],
    }  # fmt: skip
    kernel = {"gpu": "triton", "tpu": "splash"}.get(platform)
    asked = kernel if wanted == "auto" else wanted
    if asked is None:
        return "xla", f"blocks of queries; no kernel for documents on {platform}"
    reasons = [reason for is_met, reason in obstacles[asked] if is_met]
    if not reasons:
        return asked, "flash, by document" if wanted == "auto" else "as configured"
    if wanted == "auto":
        return "xla", f"blocks of queries; {asked} cannot: {reasons[0]}"
    raise InputError(f"train.attention={wanted} cannot run: {reasons[0]}; --train.attention=xla can")


def document_begins(tokens_BT, bos_id: int):
    """Position of the last BOS at or before each token, int32 [B, T]; 0 before the first."""
    positions_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(tokens_BT == bos_id, positions_T, 0), axis=1)


def packed_attention(q_BTNH, k_BTNH, v_BTNH, begin_BT, *, window, scale, implementation="xla"):
    """Causal softmax attention by document: query t sees the keys max(begin_t, t - window + 1) .. t.

    Args:
      q_BTNH, k_BTNH, v_BTNH: one dtype; the softmax runs in float32 or wider. T may be other than the tokens' if
        `begin_BT` goes with it: two rows per token, say, and half the heads.
      begin_BT: int32, the first position of each one's document, at most its own and the same in all of a document.
      window: static; keys that a query sees at most, itself included; may exceed T.
      scale: static; of the scores before the softmax.
      implementation: xla, triton or splash.

    Returns:
      An array like q_BTNH.
    """
    forms = {"xla": packed_scan, "triton": packed_triton.packed_triton, "splash": packed_splash.packed_splash}
    run = functools.partial(forms[implementation], window=window, scale=scale)
    if implementation == "xla":
        return run(q_BTNH, k_BTNH, v_BTNH, begin_BT)
    if implementation == "triton":
        run = functools.partial(run, tiles=packed_triton.tiles_for(_device_kind()))
    return per_shard(run)(q_BTNH, k_BTNH, v_BTNH, begin_BT)


def cached_attention(q_BTNH, k_BSNH, v_BSNH, begin_BT, *, offset_B, window, scale):
    """`packed_attention` for new tokens of rows whose earlier keys are in a cache; scores of T x S are written out.

    Args:
      k_BSNH, v_BSNH: the cache, with the keys of the new tokens in it.
      begin_BT: the first position of each new token's document, in the cache.
      offset_B: position of each row's first new token; None: 0.
    """
    positions_BT = query_positions(q_BTNH, offset_B)
    first_BT = jnp.maximum(begin_BT, positions_BT - (window - 1))
    keys_S = jnp.arange(k_BSNH.shape[1])
    is_seen_BTS = (keys_S <= positions_BT[..., None]) & (keys_S >= first_BT[..., None])
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=wide)
    probs_BNTS = jax.nn.softmax(jnp.where(is_seen_BTS[:, None], scores_BNTS * scale, MASKED), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", probs_BNTS.astype(v_BSNH.dtype), v_BSNH)


def _device_kind() -> str:
    """The card to compile for: that of the mesh, which may be absent, or else the first one here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device or jax.devices()[0]).device_kind

"""Flash attention on a TPU: JAX's splash kernel, written in Pallas."""

import functools

import jax
import jax.numpy as jnp


def splash(q_BTNH, k_BSNH, v_BSNH, *, window=None, interpret=False):
    """Causal attention, as `attention.attention` has it. The kernel wants heads before time, and no scale of its own.

    Args:
      interpret: runs the kernel's own steps one by one, on any machine.
    """
    seq_len, n_heads, head_dim = q_BTNH.shape[1:]
    kernel = jax.vmap(splash_kernel(seq_len, n_heads, window, interpret))
    heads_first = [x.swapaxes(1, 2) for x in (q_BTNH * head_dim**-0.5, k_BSNH, v_BSNH)]
    y_BNTH: jax.Array = one_pass(kernel, *heads_first)  # pyright: ignore[reportAssignmentType]
    return y_BNTH.swapaxes(1, 2)


def splash_kernel(seq_len: int, n_heads: int, window: int | None, interpret: bool):
    """The kernel for one row of heads [N, T, H], causal, with `window` keys per query; None: all."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape = (seq_len, seq_len)
    mask = (
        splash_attention.CausalMask(shape)
        if window is None
        else splash_attention.LocalMask(shape, (window - 1, 0), offset=0)
    )
    block = next(size for size in (512, 256, 128) if seq_len % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * n_heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        interpret=interpret,
    )


def one_pass(kernel, *inputs):
    """Runs a kernel; in half precision as if `train.matmul_precision` were "default", its gradient too."""
    return kernel(*inputs) if inputs[0].dtype == jnp.float32 else _one_pass(kernel, *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _one_pass(kernel, *inputs):
    """Runs a kernel and its gradient as if `train.matmul_precision` were "default".

    Mosaic refuses products of bfloat16 at the precision "highest", which means nothing for them.
    """
    with jax.default_matmul_precision("default"):
        return kernel(*inputs)


def _one_pass_forward(kernel, *inputs):
    with jax.default_matmul_precision("default"):
        return jax.vjp(kernel, *inputs)


def _one_pass_backward(kernel, pull_back, d_y):
    with jax.default_matmul_precision("default"):
        return pull_back(d_y)


_one_pass.defvjp(_one_pass_forward, _one_pass_backward)

"""The hash of a token and the one before it, which picks a row of the bigram embedding.

modded-nanogpt computes it in int32 that wraps, with a modulus that has the divisor's sign, and puts the number of the
last row in the first token's place before it looks back. So the second token's hash does not know the first token, and
the wrap matters there alone: 27191 x 251519 is beyond 2^31. Documents do not reset it.

Reference: https://github.com/KellerJordan/modded-nanogpt (93f0e6b).
"""

import jax.numpy as jnp

FACTOR, FACTOR_BEFORE = 36313, 27191


def bigram_ids(tokens_BT, before_BT, positions_BT, n_rows):
    """Rows of the table, int32 [B, T] in [0, n_rows).

    Args:
      before_BT: the token before each; not read at a row's first two positions.
      positions_BT: of the tokens in their rows, or [1, T].
      n_rows: of the table. The last one belongs to the first position of a row.
    """
    last = n_rows - 1
    tokens_BT = tokens_BT.astype(jnp.int32)
    before_BT = jnp.where(positions_BT == 1, jnp.int32(last), before_BT.astype(jnp.int32))
    mixed_BT = jnp.bitwise_xor(FACTOR * tokens_BT, FACTOR_BEFORE * before_BT)
    return jnp.where(positions_BT == 0, jnp.int32(last), jnp.remainder(mixed_BT, jnp.int32(last)))

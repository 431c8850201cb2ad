"""Optimizers, each an optax transformation that anyone can use.

    optax.chain(optax.clip_by_global_norm(1.0), jaxgpt.optim.muon(0.02))

The functions hide the modules of their names; `from jaxgpt.optim.muon import muon_step` reaches into one.
"""

from jaxgpt.optim.adam import adam
from jaxgpt.optim.adamw import adamw
from jaxgpt.optim.clip import clip_by_global_norm, global_norm
from jaxgpt.optim.muon import muon

__all__ = ["adam", "adamw", "clip_by_global_norm", "global_norm", "muon"]

"""Optimizers, each an optax transformation that anyone can use."""

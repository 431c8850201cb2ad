"""Every tolerance of the suite, with its reason and the floor that was measured (CPU, jax 0.10, torch 2.13)."""

FP64 = 1e-10
"""Two orders of one computation in float64. Floor: about 1e-15; the smallest bug looked for gives 7e-10."""

FP32_LOGITS = 1e-5
"""Logits, absolute, of small models with weights of 0.02. Floor: 7e-7."""

FP32_GRAD = 1e-5
"""Gradients, relative per tensor (L2). Floor: 9e-7."""

FP32_PARAMS = 3e-5
"""Parameters after a short run, relative (L2). Floor: 3e-6."""

FP32_LOSS = 2e-5
"""Loss per step over a run, absolute, another order of sums or another number of devices. Floor: 3e-6."""

FP32_OP = 2e-6
"""One operation (attention, norm, loss per token) in float32, relative to the largest element."""

BF16_OP = 2e-2
"""One operation in bfloat16, which keeps 8 bits: relative to the largest element."""

MUON_FP32 = 2e-5
"""A Muon update with Newton-Schulz in float32, relative (Frobenius). Floor: 2e-6."""

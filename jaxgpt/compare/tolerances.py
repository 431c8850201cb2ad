"""Every tolerance of the suite, with its reason and the floor that was measured (CPU, jax 0.10, torch 2.13)."""

from typing import NamedTuple

FP64 = 1e-10
"""Two orders of one computation in float64. Floor: about 1e-15; the smallest bug looked for gives 7e-10."""

GOLDEN = 1e-9
"""A golden loss of a float64 run, relative. Floor: 0 on the machine that wrote it; another compiler sums otherwise."""

FP32_LOGITS = 1e-5
"""Logits, absolute, of small models. Floor: 1e-6."""

FP32_GRAD = 1e-5
"""Gradients, relative per tensor (L2). Floor: 9e-7."""

FP32_LAMBDA_GRAD = 1e-4
"""Gradients of nanochat's lambdas, relative: sums over all activations that nearly cancel. Floor: 8e-6."""

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


class Gate(NamedTuple):
    """What `jaxgpt.compare` permits: the limit, None where a figure is only shown; and the measured floor."""

    limit: float | None
    floor: float


BF16_LOSS_MAX = 3e-3
"""Loss per step, absolute. Floor: 1e-3. Rounding to 8 bits at every layer; curves are all that bfloat16 can judge."""

BF16_LOSS_MEAN = 6e-4
"""Mean of these over a run: a wrong recipe is off at every step, rounding is not. Floor: 4e-4."""

BF16_GRAD_NORM = 1e-2
"""Gradient norm per step, relative. Floor: 4e-3."""

BF16_GRAD = 0.1
"""Gradients of the first step, relative per tensor (L2). Floor: 3e-2 here, 6e-2 in a model four times as wide."""

BF16_LAMBDA_GRAD = 0.5
"""Gradients of nanochat's lambdas, one framework against the other: sums that cancel, so that one draw may be far off.
Floor: 2.5e-1, the largest of eight draws; 4e-2 in the recipe."""

BF16_LAMBDA_ERROR = 5e-2
"""The same against float64, four draws together; smear apart. Floor: 1.7e-2; times numbers in bfloat16 1.6e-1."""

BF16_SMEAR_ERROR = 0.2
"""Of smear, whose gate is a bfloat16 number in any case. Floor: 8e-2."""

BF16_LAYER = 3e-2
"""Activations of one layer after another, relative (L2). Floor: 4e-3."""


PARITY = {
    "float64": {
        "logits": Gate(FP64, 3e-15),
        "loss, max": Gate(FP64, 2e-15),
        "loss, mean": Gate(FP64, 4e-16),
        "gradient norm": Gate(FP64, 2e-15),
        "gradients, step 1": Gate(FP64, 2e-15),
        "parameters, step 1": Gate(FP64, 5e-15),
        "parameters, last step": Gate(FP64, 2e-14),
        "optimizer state": Gate(FP64, 1e-14),
        "lambdas, gradients": Gate(FP64, 7e-14),
        "key biases, gradients": Gate(FP64, 2e-18),
        "key biases, last step": Gate(None, 1e-12),
        "trace, forward": Gate(FP64, 1e-15),
        "trace, backward": Gate(FP64, 2e-15),
    },
    "float32": {
        "logits": Gate(FP32_LOGITS, 1e-6),
        "loss, max": Gate(FP32_LOSS, 1e-6),
        "loss, mean": Gate(FP32_LOSS, 3e-7),
        "gradient norm": Gate(FP32_GRAD, 7e-7),
        "gradients, step 1": Gate(FP32_GRAD, 1e-6),
        "parameters, step 1": Gate(FP32_PARAMS, 2e-6),
        "parameters, last step": Gate(FP32_PARAMS, 6e-6),
        "optimizer state": Gate(FP32_PARAMS, 7e-6),
        "lambdas, gradients": Gate(FP32_LAMBDA_GRAD, 8e-6),
        "key biases, gradients": Gate(FP32_GRAD, 6e-10),
        "key biases, last step": Gate(None, 3e-4),
        "trace, forward": Gate(FP32_GRAD, 3e-7),
        "trace, backward": Gate(FP32_GRAD, 6e-7),
    },
    "bfloat16": {
        "logits": Gate(None, 3e-2),
        "loss, max": Gate(BF16_LOSS_MAX, 1e-3),
        "loss, mean": Gate(BF16_LOSS_MEAN, 4e-4),
        "gradient norm": Gate(BF16_GRAD_NORM, 4e-3),
        "gradients, step 1": Gate(BF16_GRAD, 3e-2),
        "parameters, step 1": Gate(None, 4e-1),
        "parameters, last step": Gate(None, 7e-2),
        "optimizer state": Gate(None, 2e-1),
        "lambdas, gradients": Gate(BF16_LAMBDA_GRAD, 3e-1),
        "key biases, gradients": Gate(None, 9e-6),
        "key biases, last step": Gate(None, 1.0),
        "trace, forward": Gate(BF16_LAYER, 4e-3),
        "trace, backward": Gate(BF16_GRAD, 1e-2),
    },
}
"""Gates of `jaxgpt.compare` by dtype and quantity.

The floors are the largest of four recipes', GPT-2's and nanochat's (docs/parity.md has each). Parameters in
bfloat16 carry no gate: AdamW turns a gradient near 0 of the wrong sign into a step of the wrong sign. Nor do key
biases in any dtype, whose gradient is rounding alone.
"""

DTYPES = tuple(PARITY)

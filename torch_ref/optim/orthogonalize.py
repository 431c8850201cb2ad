"""jaxgpt/optim/orthogonalize.py in PyTorch. Matrices are [out, in], as in the originals."""

import functools
from collections import defaultdict
from collections.abc import Sequence

import torch

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_EXACT = (2.0, -1.5, 0.5)
NS_EPS = 1e-7
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR_EPS = 1e-6
SCALE_EPS = 1e-6


def orthogonalize(
    directions: Sequence[torch.Tensor], *, orthogonalizer: str, ns_steps: int, ns_dtype: str, ns_margin: float,
    equilibrate_rows: bool, renormalize: bool,
) -> list[torch.Tensor]:  # fmt: skip
    iterate = {
        "newton_schulz": functools.partial(newton_schulz, coefficients=NS_COEFFICIENTS),
        "newton_schulz_exact": functools.partial(newton_schulz, coefficients=NS_EXACT),
        "polar_express": functools.partial(polar_express, margin=ns_margin),
    }[orthogonalizer]
    members = defaultdict(list)
    for i, direction in enumerate(directions):
        members[direction.shape, direction.dtype].append(i)
    result = list(directions)
    for (_, dtype), indices in members.items():
        stack_LOI = torch.stack([directions[i] for i in indices])
        if equilibrate_rows:
            stack_LOI = scale_rows(stack_LOI)
        stack_LOI = iterate(stack_LOI, steps=ns_steps, dtype=getattr(torch, ns_dtype)).to(dtype)
        if renormalize:
            stack_LOI = scale_matrices(stack_LOI)
        for place, i in enumerate(indices):
            result[i] = stack_LOI[place]
    return result


def frobenius_norm(x_LOI):
    return torch.sqrt((x_LOI * x_LOI).sum(dim=(1, 2), keepdim=True))


def scale_rows(x_LOI):
    norm_L11 = frobenius_norm(x_LOI)
    row_norm_LO1 = torch.sqrt((x_LOI * x_LOI).sum(dim=2, keepdim=True))
    return x_LOI * (norm_L11 * x_LOI.shape[1] ** -0.5 / torch.clamp(row_norm_LO1, min=SCALE_EPS))


def scale_matrices(x_LOI):
    target = min(x_LOI.shape[1:]) ** 0.5
    return x_LOI * (target / torch.clamp(frobenius_norm(x_LOI), min=SCALE_EPS))


def newton_schulz(x_LOI, *, steps, dtype, coefficients=NS_COEFFICIENTS):
    # Square ones are turned too, here and below, so that the iteration sees jaxgpt's [in, out].
    is_tall = x_LOI.shape[1] >= x_LOI.shape[2]
    x = x_LOI.mT if is_tall else x_LOI
    x = x.to(dtype)
    x = x / (frobenius_norm(x) + NS_EPS)
    for _ in range(steps):
        x = quintic(x, coefficients)
    return x.mT if is_tall else x


def polar_express(x_LOI, *, steps, dtype, margin=1.01):
    is_tall = x_LOI.shape[1] >= x_LOI.shape[2]
    x = x_LOI.mT if is_tall else x_LOI
    x = x.to(dtype)
    x = x / (margin * frobenius_norm(x) + POLAR_EPS)
    for coefficients in POLAR_EXPRESS[:steps]:
        x = quintic(x, coefficients)
    return x.mT if is_tall else x


def quintic(x_LOI, coefficients):
    # In half precision torch computes an elementwise operation in float32 with numbers unrounded, as jaxgpt spells out.
    a, b, c = coefficients
    gram = x_LOI @ x_LOI.mT
    return a * x_LOI + (b * gram + c * (gram @ gram)) @ x_LOI

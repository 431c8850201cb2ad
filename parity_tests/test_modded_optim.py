"""The optimizers of modded-nanogpt against figures of the originals' own code, in float64, in both frameworks.

The originals hold matrices in banks. Record 62 has them as [out, in] but for the second of the MLP, record 46 all but
the first. The figures are norms, sums and first elements of whole banks, so `split` and `join` stand between.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import AdamConfig, OptimConfig
from jaxgpt.config.modded_optimizers import MODDED_46, MODDED_62, MODDED_TRACK3
from jaxgpt.config.param_groups import param_groups
from jaxgpt.optim import normuon as jax_normuon
from jaxgpt.optim import orthogonalize as jax_orthogonalize
from jaxgpt.optim.muon import muon
from jaxgpt.optim.optimizer import optimizer

torch = pytest.importorskip("torch")

from torch_ref.optim import adam as torch_adam  # noqa: E402
from torch_ref.optim import normuon as torch_normuon  # noqa: E402
from torch_ref.optim import orthogonalize as torch_orthogonalize  # noqa: E402
from torch_ref.optim.muon import muon as torch_muon  # noqa: E402
from torch_ref.optim.optimizer import optimizer as torch_optimizer  # noqa: E402

Arrays = dict[str, np.ndarray]
CLOSE = 1e-12
"""Relative. Floor: 3e-13, of a small element after eight steps; norms 5e-15."""
FRAMEWORKS = ["jaxgpt", "torch_ref"]


class Record(NamedTuple):
    """An original's optimizer, on tensors drawn from a seed.

    Attributes:
      shapes: of its tensors, in the order in which they are drawn.
      split: (tensors) -> ours, [in, out].
      join: (ours) -> tensors.
      lr_scale: the schedule's factor at every step.
    """

    config: OptimConfig
    seed: int
    shapes: dict[str, tuple[int, ...]]
    split: Callable[[Arrays], Arrays]
    join: Callable[[Arrays], Arrays]
    lr_scale: float


def split_62(tensors):
    attn, mlp = tensors["attn"].reshape(2, 4, 12, 12), tensors["mlp"]
    ours = {"wte.weight": tensors["embed"], "lm_head.weight": tensors["lm_head"].T}
    ours |= {"resid_lambdas": tensors["scalars"], "value_embeds.0.weight": tensors["ve0"]}
    for i in range(2):
        ours |= {f"h.{i}.attn.{name}.weight": attn[i, j].T for j, name in enumerate(["c_q", "c_k", "c_v", "c_proj"])}
        ours |= {f"h.{i}.mlp.c_fc.weight": mlp[i, 0].T, f"h.{i}.mlp.c_proj.weight": mlp[i, 1]}
    return ours


def join_62(ours):
    """Also of a part of the state, which has the matrices only or the rest only."""
    tensors = {}
    if "wte.weight" in ours:
        tensors = {"embed": ours["wte.weight"], "lm_head": ours["lm_head.weight"].T}
        tensors |= {"scalars": ours["resid_lambdas"], "ve0": ours["value_embeds.0.weight"]}
    if "h.0.mlp.c_fc.weight" in ours:
        attn = [ours[f"h.{i}.attn.{name}.weight"].T for i in range(2) for name in ("c_q", "c_k", "c_v", "c_proj")]
        mlp = [m for i in range(2) for m in (ours[f"h.{i}.mlp.c_fc.weight"].T, ours[f"h.{i}.mlp.c_proj.weight"])]
        tensors |= {"attn": np.stack(attn), "mlp": np.stack(mlp)}
    return tensors


def narrow(config: OptimConfig, paths: Iterable[str], **changes: Any) -> OptimConfig:
    """A preset in float64, with the groups of these parameters only."""
    groups = tuple(group for group in config.groups if any(re.search(group.match, path) for path in paths))
    muon = dataclasses.replace(config.muon, ns_dtype="float64")
    return dataclasses.replace(config, groups=groups, muon=muon, **changes)


RECORD_62 = Record(
    narrow(
        MODDED_62, ["h.0.mlp.c_proj.weight", "wte.weight", "value_embeds.0.weight", "resid_lambdas"], tie_until=4
    ),
    9, {"attn": (2, 48, 12), "embed": (32, 12), "lm_head": (12, 32), "mlp": (2, 2, 48, 12), "scalars": (5,),
        "ve0": (32, 12)},
    split_62, join_62, 1.52,
)  # fmt: skip


def split_46(tensors):
    attn = tensors["attn"].reshape(4, 12, 12)  # its memory read anew, not cut into columns
    return {f"h.0.attn.{name}.weight": attn[j].T for j, name in enumerate(["c_q", "c_k", "c_v", "c_proj"])} | {
        "h.0.attn.gate.weight": tensors["attn_gate"].T,
        "h.0.mlp.c_fc.weight": tensors["c_fc"],
        "h.0.mlp.c_proj.weight": tensors["c_proj"].T,
        "wte.weight": tensors["embed"],
        "lm_head.weight": tensors["head"],
        "resid_lambdas": tensors["scalars"],
    }


def join_46(ours):
    attn = np.stack([ours[f"h.0.attn.{name}.weight"].T for name in ("c_q", "c_k", "c_v", "c_proj")])
    return {
        "attn": attn.reshape(12, 48),
        "attn_gate": ours["h.0.attn.gate.weight"].T,
        "c_fc": ours["h.0.mlp.c_fc.weight"],
        "c_proj": ours["h.0.mlp.c_proj.weight"].T,
        "embed": ours["wte.weight"],
        "head": ours["lm_head.weight"],
        "scalars": ours["resid_lambdas"],
    }


RECORD_46 = Record(
    narrow(MODDED_46, ["wte.weight", "lm_head.weight", "resid_lambdas"]),
    12, {"attn": (12, 48), "attn_gate": (6, 12), "c_fc": (12, 48), "c_proj": (12, 48), "embed": (32, 12),
         "head": (32, 12), "scalars": (8,)},
    split_46, join_46, 1.51,
)  # fmt: skip


def start_of(record: Record) -> Arrays:
    tensors = {
        name: 0.3 * np.random.default_rng([record.seed, k]).standard_normal(shape)
        for k, (name, shape) in enumerate(record.shapes.items())
    }
    return tensors | ({"embed": tensors["lm_head"].T} if record is RECORD_62 else {})


def gradients_of(record: Record, step: int) -> Arrays:
    return {
        name: np.random.default_rng([record.seed, 1000 + step, k]).standard_normal(shape)
        for k, (name, shape) in enumerate(record.shapes.items())
    }


def steps_of_jax(record: Record, n_steps: int, config: OptimConfig) -> Iterator[tuple[Arrays, dict[str, Any]]]:
    """Parameters and state after each step."""
    params: Any = {path: jnp.asarray(array) for path, array in record.split(start_of(record)).items()}
    transform: Any = optimizer(config, param_groups(config, {path: leaf.shape for path, leaf in params.items()}))
    state = transform.init(params)
    update = jax.jit(transform.update)
    for step in range(n_steps):
        grads = {path: jnp.asarray(array) for path, array in record.split(gradients_of(record, step)).items()}
        updates, state = update(grads, state, params, hyper=hyper_of(record, step))
        params = {path: leaf + updates[path] for path, leaf in params.items()}
        yield jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, state)


def steps_of_torch(record: Record, n_steps: int, config: OptimConfig) -> Iterator[tuple[Arrays, dict[str, Any]]]:
    def turn(tree):
        return {path: np.ascontiguousarray(a.T if path.startswith("h.") else a) for path, a in tree.items()}

    start = record.split(start_of(record))
    params = {path: torch.tensor(array) for path, array in turn(start).items()}
    transform = torch_optimizer(config, param_groups(config, {path: array.shape for path, array in start.items()}))
    state = transform.init(params)
    for step in range(n_steps):
        grads = {path: torch.tensor(a) for path, a in turn(record.split(gradients_of(record, step))).items()}
        hyper = {name: torch.tensor(value, dtype=torch.float64) for name, value in hyper_of(record, step).items()}
        transform.update(grads, state, params, hyper=hyper, is_finite=torch.tensor(True))
        shown = {
            name: leaf.numpy().copy() if name == "count" else turn({p: a.numpy().copy() for p, a in leaf.items()})
            for name, leaf in state.items()
        }
        yield turn({path: leaf.numpy().copy() for path, leaf in params.items()}), shown


def hyper_of(record: Record, step: int) -> dict[str, float]:
    return {"lr_scale": record.lr_scale, "momentum": 0.85 + step / 3000, "decay_scale": 1.0}


def run(framework: str, record: Record, n_steps: int = 8, config: OptimConfig | None = None):
    steps = {"jaxgpt": steps_of_jax, "torch_ref": steps_of_torch}[framework]
    with jax.enable_x64(True):
        return list(steps(record, n_steps, config or record.config))


def describe(tensors: Arrays) -> dict[str, tuple[float, float, float]]:
    """Norm, sum, first element."""
    return {name: (float(np.linalg.norm(a)), float(a.sum()), float(a.flat[0])) for name, a in tensors.items()}


# fmt: off
FIGURES_62: dict[str, dict[int, tuple[float, float, float]]] = {
    "attn": {1: (10.2463837633596, 3.14104393441013, -0.232567330099109), 2: (10.2325306861516, 3.4443934591244, -0.228928480933512), 3: (10.2346512050158, 3.35663893608268, -0.246207158187282), 4: (10.2473584766798, 3.43737650829596, -0.248954172609828), 8: (10.3214246675919, 3.51869546508292, -0.225385333245891)},  # noqa: E501
    "embed": {1: (6.08456548512873, -14.1598075617558, -0.547884163320436), 2: (6.1021179301922, -14.475543783994, -0.535663403405863), 3: (6.1021179301922, -14.475543783994, -0.535663403405863), 4: (6.1175675109968, -14.7425804810372, -0.524780882808014), 8: (6.13735793714981, -14.7229846551706, -0.513346709648636)},  # noqa: E501
    "lm_head": {1: (6.08456548512873, -14.1598075617558, -0.547884163320436), 2: (6.1021179301922, -14.475543783994, -0.535663403405863), 3: (6.1021179301922, -14.475543783994, -0.535663403405863), 4: (6.1175675109968, -14.7425804810372, -0.524780882808014), 8: (6.13539514621014, -14.8246257666299, -0.520598767872461)},  # noqa: E501
    "mlp": {1: (14.4063865176794, -2.44485036925408, 0.245708634675451), 2: (14.4066323359987, -2.55456768735779, 0.241958724512174), 3: (14.4210819397468, -2.92351972040523, 0.261728128717905), 4: (14.4586427595461, -3.06424473159184, 0.269965772538501), 8: (14.7434659885161, -1.88623455270946, 0.269506986913875)},  # noqa: E501
    "scalars": {1: (0.751569741389675, 1.09412131554005, 0.24482876813513), 2: (0.810458556417599, 1.2765213154031, 0.184028768165252), 3: (0.810458556417599, 1.2765213154031, 0.184028768165252), 4: (0.875311208550949, 1.43444215194102, 0.125828197640058), 8: (0.953165715500117, 1.58650309740232, 0.0162719056195994)},  # noqa: E501
    "ve0": {1: (5.51040666389452, 5.08236014294764, 0.213913745112567), 2: (18.7184672824307, -0.418220165263427, 1.12591374416984), 3: (18.7184672824307, -0.418220165263427, 1.12591374416984), 4: (27.1592882556125, 10.4292017150442, 1.97436416567511), 8: (39.2153114126648, 9.91276660154134, 1.6680346347774)},  # noqa: E501
}
STATES_62 = {
    "momentum": {"attn": 8.96647188090161, "mlp": 13.1134423041677},
    "square": {"attn": 0.281632271062091, "mlp": 0.100327293929755},
    "mu": {"embed": 17.1884564768841, "lm_head": 16.7967975243407, "scalars": 0.717761549903802, "ve0": 9.76271028514399},  # noqa: E501
    "nu": {"embed": 13.9469049195402, "lm_head": 13.8677309541335, "scalars": 0.1807003635562, "ve0": 8.83157523222863},
}
FIGURES_46 = {
    1: {"attn": (7.11695510403287, -0.00609358608916581), "attn_gate": (2.81727950750862, 0.0158656708088653), "c_fc": (6.81986832946281, -0.244617397861564), "c_proj": (7.30111655768953, 0.617273258789918), "embed": (6.0544347282753, 0.0623808669164617), "head": (6.17714701451717, -0.459084604810882), "scalars": (1.04186146907949, -0.0551499944627013)},  # noqa: E501
    2: {"attn": (7.12414893163121, 0.0108146761542339), "attn_gate": (2.83558575584119, 0.0215346501845389), "c_fc": (6.82967170383796, -0.255194514695253), "c_proj": (7.30296182166217, 0.611144370692323), "embed": (18.9255985568134, -0.843619029996741), "head": (6.17575149488693, -0.447004605375549), "scalars": (1.13557332617262, 0.00524998912102922)},  # noqa: E501
    4: {"attn": (7.14282491113934, 0.0113473136868328), "attn_gate": (2.83110971212245, 0.0501348528310936), "c_fc": (6.83586259988169, -0.256915301674139), "c_proj": (7.28797602026265, 0.616898155533811), "embed": (27.3436329032196, -0.270296419180534), "head": (6.16582825837245, -0.450756120190467), "scalars": (1.18626146739088, 0.0666422329365511)},  # noqa: E501
    8: {"attn": (7.16304129414125, 0.00105910573134262), "attn_gate": (2.832221775507, 0.112592389539848), "c_fc": (6.88005862756121, -0.254660317351022), "c_proj": (7.28736811153319, 0.639827513971211), "embed": (38.7516041653434, 0.478731523293246), "head": (6.16366866829647, -0.450098940793629), "scalars": (1.22604363645042, 0.0667127613422744)},  # noqa: E501
}
POLAR = {
    (5, (96, 96)): {"sum": 20.6683241946771, "norm": 9.94492130829882, "first": -0.10625904424774, "last": -0.0698521850930747, "sv_max": 1.14112019078285, "sv_min": 0.651682679102598},  # noqa: E501
    (6, (2, 64, 24)): {"sum": 4.92341366451722, "norm": 7.15986415052484, "first": 0.190062829895422, "last": -0.171078024894977, "sv_max": 1.14021051166793, "sv_min": 0.867899612750543},  # noqa: E501
    (6, (2, 24, 64)): {"sum": 6.46634895210151, "norm": 7.01888586210864, "first": 0.0905864386830082, "last": -0.182005085628572, "sv_max": 1.14093307947081, "sv_min": 0.859529277687414},  # noqa: E501
}
NEWTON_SCHULZ = {
    (13, (64, 64)): {"sum": 16.8344125671038, "norm": 8.00000000000062, "first": 0.120904678888099, "sv_max": 1.0000000000047, "sv_min": 0.999999999999999, "update_norm": 8.00000000000062, "momentum_norm": 3.22049999158344},  # noqa: E501
    (14, (128, 32)): {"sum": 6.90293941371488, "norm": 5.65685424949238, "first": 0.0627625810997706, "sv_max": 1.0, "sv_min": 0.999999999999999, "update_norm": 11.3137084989848, "momentum_norm": 3.182344977789},  # noqa: E501
}
VARIANCE = {
    (3, 40, 16): [(-55.4576474264618, 44.4436755821657, -1.51950505392205, 6.17262593516498), (-77.642447528966, 43.4170705076197, -0.413212633704293, 11.7547509242306), (18.8111305793188, 45.0266895270976, -1.02820551289565, 17.5026470335492)],  # noqa: E501
    (3, 16, 40): [(-57.6112793186714, 44.4436755821657, -1.33873682536374, 6.17262593516498), (-55.7500225683965, 43.4170705076197, -0.338255967849646, 11.7547509242306), (18.1873580160177, 45.0266895270976, -0.969633487753147, 17.5026470335492)],  # noqa: E501
}
# fmt: on


def furthest_62(steps) -> float:
    """The largest relative distance from the figures of record 62, of parameters and states."""
    far = []
    for n, (params, _) in enumerate(steps, start=1):
        for name, found in describe(RECORD_62.join(params)).items():
            expected = FIGURES_62[name].get(n, found)
            far += [abs(a - b) / max(abs(b), expected[0] * 0.1) for a, b in zip(found, expected, strict=True)]
    for field, expected in STATES_62.items():
        found = describe(RECORD_62.join(steps[-1][1][field]))
        far += [abs(found[name][0] / norm - 1) for name, norm in expected.items()]
    return max(far)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_record_62(framework):
    assert furthest_62(run(framework, RECORD_62)) < CLOSE


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_record_46(framework):
    steps = run(framework, RECORD_46)
    for n, figures in FIGURES_46.items():
        for name, (norm, _, first) in describe(RECORD_46.join(steps[n - 1][0])).items():
            assert (norm, first) == pytest.approx(figures[name], rel=CLOSE, abs=CLOSE), f"{name} after {n}"


TABLE_62 = {
    "h.3.attn.c_q.weight": ("muon", 1, 1.2), "h.3.mlp.c_fc.weight": ("muon", 1, 1.2),
    "h.3.mlp.c_proj.weight": ("muon", 4, 1.2),
    "resid_lambdas": ((0.9, 0.99), 5, 0), "attn_lambdas": ((0.9, 0.99), 5, 0),
    "smear_lambda": ((0.9, 0.99), 5, 0), "x0_lambdas": ((0.65, 0.95), 5, 0),
    "value_embeds.1.weight": ((0.75, 0.95), 75, 5), "bigram_embed.weight": ((0.75, 0.95), 75, 5),
    "smear_gate.weight": ((0.9, 0.99), 0.01, 0), "skip_gate.weight": ((0.9, 0.99), 0.05, 0),
    "h.3.attn.gate.weight": ((0.9, 0.99), 1, 1), "h.3.attn.ve_gate.weight": ((0.9, 0.99), 1, 1),
    "lm_head.weight": ((0.5, 0.95), 1, 150), "wte.weight": ((0.5, 0.95), 1, 150),
}  # fmt: skip
"""Path -> betas, multiple of the learning rate, multiple of the decay, as in the original's table; muon: its decay."""


def test_the_table_of_record_62():
    config = narrow(MODDED_62, TABLE_62)
    assert config.groups == MODDED_62.groups
    found = param_groups(
        config, {path: (8,) if path.endswith(("lambda", "x0_lambdas")) else (8, 4) for path in TABLE_62}
    )
    for path, (betas, lr_multiple, decay) in TABLE_62.items():
        group = found[path]
        assert (group.algorithm == "muon") == (betas == "muon"), path
        base, decays = (0.023, decay) if betas == "muon" else (0.008, decay * 0.005)
        assert (group.lr, group.weight_decay) == pytest.approx((base * lr_multiple, decays), rel=1e-15), path
        assert betas == "muon" or (group.beta1, group.beta2, group.eps) == (*betas, 1e-10), path


def test_the_table_of_track_3():
    shapes = {"h.0.attn.c_q.weight": (8, 8), "h.0.attn.c_q.bias": (8,), "h.0.ln_1.weight": (8,)}
    shapes |= {"wte.weight": (16, 8), "lm_head.weight": (16, 8), "lm_head.bias": (16,), "ln_f.weight": (8,)}
    found = param_groups(narrow(MODDED_TRACK3, shapes), shapes)
    rates = {path: (group.algorithm, group.lr, group.weight_decay) for path, group in found.items()}
    vectors = {path: ("adamw", 0.015, 0.001) for path, shape in shapes.items() if len(shape) == 1}
    assert rates == vectors | {
        "h.0.attn.c_q.weight": ("muon", 0.025, 0.05),
        "wte.weight": ("adamw", 0.7, 0.001),
        "lm_head.weight": ("adamw", 0.004, 0.001),
    }


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_adam_updates_in_odd_steps_only_and_the_tie_ends_with_the_fourth(framework):
    steps = run(framework, RECORD_62)
    adam = ["wte.weight", "lm_head.weight", "resid_lambdas", "value_embeds.0.weight"]
    start = RECORD_62.split(start_of(RECORD_62))
    for step, (params, state) in enumerate(steps):
        before = steps[step - 1][0] if step else start
        assert int(state["count"]) == step + 1
        for path in params:
            stays = path in adam and step % 2 == 0
            assert (params[path].tobytes() == before[path].tobytes()) == stays, f"{path} in step {step}"
        for path in adam:
            assert state["grad_sum"][path].any() == (step % 2 == 0)
        assert (params["wte.weight"] == params["lm_head.weight"]).all() == (step < 5)
        for name in ("mu", "nu"):
            assert (state[name]["wte.weight"] == state[name]["lm_head.weight"]).all() == (step < 5)


def test_what_the_figures_tell_apart():
    """Each a plausible reading of the recipe, in the framework that compiles nothing; the gate is 1e-12."""
    config = RECORD_62.config

    def adam_step(power, mask):
        def step(param, grad, mu, nu, count, *, lr, beta1, beta2, eps, weight_decay):
            plain, mu, nu = original(
                param, grad, mu, nu, count, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=0.0
            )
            return plain - param * mask(-plain * param) * lr**power * weight_decay, mu, nu

        return step

    def with_muon(**settings):
        return dataclasses.replace(config, muon=dataclasses.replace(config.muon, **settings))

    original = torch_adam.adam_step
    nothing = mock.patch.object(torch_adam, "adam_step", original)
    readings = {
        "decay by lr": (mock.patch.object(torch_adam, "adam_step", adam_step(1, lambda up: up > 0)), config),
        "decay everywhere": (mock.patch.object(torch_adam, "adam_step", adam_step(2, torch.ones_like)), config),
        "Adam in each step": (nothing, dataclasses.replace(config, adam=AdamConfig(every=1))),
        "split two steps late": (nothing, dataclasses.replace(config, tie_until=6)),
        "never tied": (nothing, dataclasses.replace(config, tie_until=0)),
        "matrices decay without mask": (nothing, with_muon(cautious=False)),
        "matrices decay by lr": (nothing, with_muon(decay_follows_lr=False)),
        "matrices decay by lr x the peak": (nothing, with_muon(decay_follows_lr=False, weight_decay=1.2 * 0.023)),
        "margin 1.01": (nothing, with_muon(ns_margin=1.01)),
        "no Nesterov": (nothing, with_muon(nesterov=False)),
        "other axis of square ones": (nothing, with_muon(norm_axis_if_square="outputs")),
    }
    for name, (patch, changed) in readings.items():
        with patch:
            far = furthest_62(run("torch_ref", RECORD_62, config=changed))
        assert far > 1e-6, f"{name}: {far}"


# The pieces


def orthogonalized(framework: str, method: str, array: np.ndarray, **settings) -> np.ndarray:
    stack = array.reshape(-1, *array.shape[-2:])
    with jax.enable_x64(True):
        if framework == "jaxgpt":
            found = getattr(jax_orthogonalize, method)(jnp.asarray(stack), dtype=jnp.float64, **settings)
        else:
            found = getattr(torch_orthogonalize, method)(torch.tensor(stack), dtype=torch.float64, **settings)
        return np.asarray(found).reshape(array.shape)


def measure(matrix: np.ndarray) -> dict[str, Any]:
    values = np.linalg.svd(matrix, compute_uv=False)
    return {
        "sum": matrix.sum(), "norm": np.linalg.norm(matrix), "first": matrix.flat[0], "last": matrix.flat[-1],
        "sv_max": values.max(), "sv_min": values.min(),
    }  # fmt: skip


@pytest.mark.parametrize("case", POLAR, ids=str)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_polar_express(framework, case, monkeypatch):
    seed, shape = case
    array = np.random.default_rng(seed).standard_normal(shape)

    def furthest(margin):
        found = measure(orthogonalized(framework, "polar_express", array, steps=5, margin=margin))
        return max(abs(found[name] / value - 1) for name, value in POLAR[case].items())

    assert furthest(1.02) < 1e-11
    assert furthest(1.01) > 1e-6
    module = jax_orthogonalize if framework == "jaxgpt" else torch_orthogonalize
    short = tuple(tuple(round(c, 4) for c in coefficients) for coefficients in module.POLAR_EXPRESS)
    monkeypatch.setattr(module, "POLAR_EXPRESS", short)
    assert furthest(1.02) > 1e-6


@pytest.mark.parametrize("case", NEWTON_SCHULZ, ids=str)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_newton_schulz_of_track_3(framework, case):
    """Alone, and in the first update from zero momentum; the originals' matrices are [out, in]."""
    seed, shape = case
    grad, figures = np.random.default_rng(seed).standard_normal(shape), NEWTON_SCHULZ[case]
    exact = (jax_orthogonalize if framework == "jaxgpt" else torch_orthogonalize).NS_EXACT
    found = measure(orthogonalized(framework, "newton_schulz", grad, steps=12, coefficients=exact))
    settings: Any = dataclasses.replace(MODDED_TRACK3.muon, ns_dtype="float64").of_update()
    with jax.enable_x64(True):
        if framework == "jaxgpt":
            transform: Any = muon(1.0, **settings)
            zero = {"w": jnp.zeros(shape[::-1])}
            update, state = transform.update({"w": jnp.asarray(grad.T)}, transform.init(zero), zero)
            momentum = state.momentum["w"]
        else:
            update, transform = {"w": torch.zeros(shape, dtype=torch.float64)}, torch_muon(1.0, **settings)
            hyper, state = {"lr_scale": 1.0, "momentum": 0.95, "decay_scale": 1.0}, transform.init(update)
            transform.update({"w": torch.tensor(grad)}, state, update, hyper=hyper, is_finite=torch.tensor(True))
            momentum = state["momentum"]["w"]
        found |= {"update_norm": np.linalg.norm(update["w"]), "momentum_norm": np.linalg.norm(momentum)}
    assert {name: found[name] for name in figures} == pytest.approx(figures, rel=CLOSE)


@pytest.mark.parametrize("shape", VARIANCE, ids=str)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_variance_step(framework, shape):
    """The shorter axis is averaged, which is the last of the tall ones and the first of the wide ones."""
    module = jax_normuon if framework == "jaxgpt" else torch_normuon
    array = jnp.asarray if framework == "jaxgpt" else torch.tensor
    with jax.enable_x64(True):
        zero = np.zeros((shape[1], 1) if shape[1] > shape[2] else (1, shape[2]))
        squares = [array(zero)] * shape[0]
        for call, figures in enumerate(VARIANCE[shape]):
            stack = np.random.default_rng([8, call]).standard_normal(shape)
            pairs = [module.normuon(array(x), s, 0.95) for x, s in zip(stack, squares, strict=True)]
            squares = [square for _, square in pairs]
            found = np.stack([np.asarray(direction) for direction, _ in pairs])
            total = sum(float(square.sum()) for square in squares)
            assert (found.sum(), np.linalg.norm(found), found.flat[0], total) == pytest.approx(figures, rel=CLOSE)

"""The optimizers of modded-nanogpt's records, parameter by parameter, as the originals set them.

Learning rates are multiples of one base, decays too, so they are written as such. Adam's decay goes with the square of
the learning rate, whose multiple is in it: 75 x 75 x 5 for the value embeddings. A shorter run replaces the
schedule and tie_until.
"""

from jaxgpt.config.optimizer import AdamConfig, GroupConfig, MuonConfig, OptimConfig, ScheduleConfig

MUON_LR, ADAM_LR, ADAM_DECAY = 0.023, 0.008, 0.005

MODDED_62 = OptimConfig(
    algorithm="muon", grad_clip=0.0, grad_divisor=8.0, tie_until=1042,
    schedule=ScheduleConfig(kind="trapezoid", decay_steps=1560, warmdown_frac=0.55, min_lr_frac=0.1),
    muon=MuonConfig(
        lr=MUON_LR, momentum_warmup_steps=300, momentum_end=0.85, momentum_cooldown_steps=50,
        orthogonalizer="polar_express", ns_dtype="auto", ns_margin=1.02,
        norm_beta2=0.95, weight_decay=1.2, decay_follows_lr=True, cautious=True,
    ),
    adam=AdamConfig(lr=ADAM_LR, weight_decay=ADAM_DECAY, every=2),
    groups=(
        GroupConfig(name="mlp_proj", match=r"\.mlp\.c_proj\.", lr=4 * MUON_LR),
        GroupConfig(name="gates", match=r"\.attn\.(gate|ve_gate)\.", algorithm="adam"),
        GroupConfig(
            name="head", match=r"^(wte|lm_head)\.", algorithm="adam", beta1=0.5, beta2=0.95,
            weight_decay=150 * ADAM_DECAY,
        ),
        GroupConfig(
            name="embeds", match=r"^(value_embeds|bigram_embed)\b", algorithm="adam", lr=75 * ADAM_LR, beta1=0.75,
            beta2=0.95, weight_decay=5 * ADAM_DECAY,
        ),
        GroupConfig(
            name="x0_lambdas", match="^x0_lambdas$", algorithm="adam", lr=5 * ADAM_LR, beta1=0.65, beta2=0.95,
            weight_decay=0.0,
        ),
        GroupConfig(name="lambdas", match="_lambdas?$", algorithm="adam", lr=5 * ADAM_LR, weight_decay=0.0),
        GroupConfig(name="smear_gate", match=r"^smear_gate\.", algorithm="adam", lr=0.01 * ADAM_LR, weight_decay=0.0),
        GroupConfig(name="skip_gate", match=r"^skip_gate\.", algorithm="adam", lr=0.05 * ADAM_LR, weight_decay=0.0),
    ),
)  # fmt: skip
"""Record 62 (commit 93f0e6b9): NorMuon and Adam in odd steps; embedding and head are one up to step 1041."""

MODDED_46 = OptimConfig(
    algorithm="muon", grad_clip=0.0, grad_divisor=8.0,
    schedule=ScheduleConfig(kind="trapezoid", decay_steps=2120, warmdown_frac=0.55, min_lr_frac=0.1),
    muon=MuonConfig(
        lr=MUON_LR, momentum_warmup_steps=300, momentum_end=0.85, momentum_cooldown_steps=50,
        orthogonalizer="polar_express", ns_dtype="auto", ns_margin=1.02,
        norm_beta2=0.95, norm_axis_if_square="outputs", weight_decay=1.2, decay_follows_lr=True, cautious=True,
    ),
    adam=AdamConfig(lr=ADAM_LR, beta1=0.65, beta2=0.95, eps=1e-8, weight_decay=0.0, every=2),
    groups=(
        GroupConfig(name="smear_gate", match=r"^smear_gate\.", algorithm="muon"),
        GroupConfig(name="head", match=r"^lm_head\.", algorithm="adam"),
        GroupConfig(name="embeds", match=r"^(wte|value_embeds)\b", algorithm="adam", lr=75 * ADAM_LR),
        GroupConfig(name="lambdas", match="_lambdas?$", algorithm="adam", lr=5 * ADAM_LR),
    ),
)  # fmt: skip
"""Record 46 (commit 25500ab7): gates are matrices for NorMuon too, Adam does not decay, and nothing is tied."""

MODDED_TRACK3 = OptimConfig(
    algorithm="muon", grad_clip=0.0, grad_divisor=1.0, lr=0.015, beta1=0.8, beta2=0.95, eps=1e-10, weight_decay=0.001,
    schedule=ScheduleConfig(kind="trapezoid", warmdown_frac=0.7, min_lr_frac=0.0),
    muon=MuonConfig(
        lr=0.025, orthogonalizer="newton_schulz_exact", ns_steps=12, ns_dtype="auto", weight_decay=0.05
    ),
    groups=(
        GroupConfig(name="wte", match=r"^wte\.", lr=0.7),
        GroupConfig(name="head", match=r"^lm_head\.weight$", lr=0.004),
        GroupConfig(name="vectors", match=r"^(?!h\.\d+\.(attn|mlp)\.\w+\.weight$)", weight_decay=0.001),
    ),
)  # fmt: skip
"""Track 3 (commit f411b3d3, train_gpt_simple.py): Muon and torch's AdamW, which decays biases and gains as well."""

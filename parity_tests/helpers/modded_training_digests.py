"""Figures of small training runs, measured on the original programs, lifted to float64.

Names are the originals', or of a kind of tensor in all layers: then the norm is of all of them together."""

from typing import Any

TRAINING: dict[str, dict[str, Any]] = {
    "62": {
        "token_sums": (
            35064, 34681, 35943, 34434, 35602, 36571, 71795, 64872, 68070, 71124, 69525, 67516, 104190, 108913,
            103626, 103470, 104438, 106598, 107428, 105181, 107206,
        ),
        "losses": (
            379.552566366406, 367.761733942257, 345.08351488841, 338.235951969676, 322.539762140045,
            310.61508673461, 601.096521715409, 548.60828421872, 503.991563024373, 471.143926100879,
            429.549155404263, 389.773314856919, 539.001608456121, 533.24734829368, 527.196608813113,
            527.874303735313, 528.147358023489, 525.960907557598, 519.940634475194, 527.87956087585,
            527.158019950182,
        ),
        "after": {
            1: {
                "attn_bank": 48.5121919964106, "attn_gate_bank": 13.0759908212938,
                "bigram_embed.weight": 105.21580540965, "embed.weight": 47.2449893487357,
                "lm_head.weight": 47.2449893487357, "mlp_bank": 75.268740344174, "scalars": 3.54556355050481,
                "skip_gate.weight": 1.25445218381587, "smear_gate.weight": 2.49279351057621,
                "value_embeds.0.weight": 47.1139297556894, "value_embeds.1.weight": 46.6869368559873,
                "value_embeds.2.weight": 46.6964138689431, "ve_gate_bank": 9.14801327325198,
                "x0_lambdas": 0.491676794916157,
            },
            2: {
                "attn_bank": 48.5280011590199, "attn_gate_bank": 13.08461281138,
                "bigram_embed.weight": 157.458328955615, "embed.weight": 47.1204498430498,
                "lm_head.weight": 47.1204498430499, "mlp_bank": 75.3077485471676, "scalars": 3.55345290072337,
                "skip_gate.weight": 1.25420016639714, "smear_gate.weight": 2.49289685935521,
                "value_embeds.0.weight": 98.9956735523963, "value_embeds.1.weight": 98.9521697547927,
                "value_embeds.2.weight": 98.9113943249525, "ve_gate_bank": 9.1488936832444,
                "x0_lambdas": 0.504067956483066,
            },
            3: {
                "attn_bank": 48.5572921121419, "mlp_bank": 75.4024757863822, "embed.weight": 47.1204498430498,
                "x0_lambdas": 0.504067956483066,
            },
            4: {
                "attn_bank": 48.6053501239201, "attn_gate_bank": 13.0880198338868,
                "bigram_embed.weight": 228.956671062308, "embed.weight": 47.0033396977015,
                "lm_head.weight": 47.0033396977016, "mlp_bank": 75.5686462630936, "scalars": 3.57334444849877,
                "skip_gate.weight": 1.25378014644546, "smear_gate.weight": 2.49298098284336,
                "value_embeds.0.weight": 143.575093281715, "value_embeds.1.weight": 144.661594104074,
                "value_embeds.2.weight": 143.678101282066, "ve_gate_bank": 9.15578395535995,
                "x0_lambdas": 0.460408397476606,
            },
            20: {
                "attn_bank": 51.6467258996729, "attn_gate_bank": 13.1139840308847,
                "bigram_embed.weight": 616.405601215592, "embed.weight": 46.4838121660688,
                "lm_head.weight": 46.4692949143969, "mlp_bank": 87.1627072115992, "scalars": 3.65281309004924,
                "skip_gate.weight": 1.25180711848982, "smear_gate.weight": 2.49322606330482,
                "value_embeds.0.weight": 317.635590316725, "value_embeds.1.weight": 321.542699415418,
                "value_embeds.2.weight": 318.211876866259, "ve_gate_bank": 9.16295332833077,
                "x0_lambdas": 0.4453898489507,
            },
            21: {
                "attn_bank": 51.6818133586762, "mlp_bank": 87.2959478249288, "embed.weight": 46.4838121660688,
                "lm_head.weight": 46.4692949143969, "scalars": 3.65281309004924,
            },
        },
        "grads": {
            "attn_bank": 33.4668143837399, "attn_gate_bank": 2.22001540856306,
            "bigram_embed.weight": 16.9222008886531, "embed.weight": 24.3984556003412,
            "lm_head.weight": 20.584064925943, "mlp_bank": 260.4970216474, "scalars": 22.8270534236952,
            "skip_gate.weight": 1.94294471571497, "smear_gate.weight": 0.718651473056063,
            "value_embeds.0.weight": 1.37216954141351, "value_embeds.1.weight": 1.99281566529585,
            "value_embeds.2.weight": 2.69490653389786, "ve_gate_bank": 1.27515545352174,
            "x0_lambdas": 19.4713595133733,
        },
        "state": {
            "momentum": {
                "attn": 2.9044231169541, "mlp": 16.9454540289987,
            },
            "square": {
                "attn": 0.427380373023425, "mlp": 0.185848815508682,
            },
            "mu": {
                "attn_gate_bank": 0.403723598772044, "bigram_embed.weight": 0.71463835565315,
                "embed.weight": 3.05035250151042, "lm_head.weight": 23.4576706813173, "scalars": 12.7928532591203,
                "skip_gate.weight": 0.173757353924744, "smear_gate.weight": 0.0458153731296995,
                "value_embeds.0.weight": 0.0715503975087033, "value_embeds.1.weight": 0.091894355849644,
                "value_embeds.2.weight": 0.165919727968822, "ve_gate_bank": 0.25406718717053,
                "x0_lambdas": 1.13122155884686,
            },
            "nu": {
                "attn_gate_bank": 0.0250169306563312, "bigram_embed.weight": 0.217742969360346,
                "embed.weight": 6.71089328399439, "lm_head.weight": 8.95777203520303, "scalars": 30.8326834713199,
                "skip_gate.weight": 0.0499287309187138, "smear_gate.weight": 0.004932337327788,
                "value_embeds.0.weight": 0.00650715789930051, "value_embeds.1.weight": 0.0144539850678031,
                "value_embeds.2.weight": 0.057889227217848, "ve_gate_bank": 0.0151711863565691,
                "x0_lambdas": 13.6904035674103,
            },
        },
        "validation": {0: 7.05423458532806, 21: 5.50720863141117},
    },
    "46": {
        "token_sums": (
            36019, 36189, 37141, 34261, 35193, 35209, 72707, 70470, 70825, 72361, 70502, 73659, 105623, 104268,
            102545, 105663, 105084, 101475, 107279, 105721,
        ),
        "losses": (
            283.728477420536, 280.471184444699, 283.25781283819, 268.362740488737, 266.180071344624,
            256.627460850342, 494.991705640882, 464.141665684729, 444.679404001505, 427.503295615985,
            393.116081654379, 392.296079845273, 572.672968314511, 566.744530929489, 546.919041293628,
            538.364211319313, 536.95460978719, 534.219788238786, 528.879401284058, 531.977701428594,
        ),
        "after": {1: {
            "attn_gate (all)": 13.3315249201252, "c_fc (all)": 51.0293764447801, "c_proj (all)": 50.9439482832665,
            "embed.weight": 47.2969132753674, "lm_head.weight": 47.1504249183221, "qkvo_w (all)": 48.4618673450538,
            "scalars": 4.00828654791162, "smear_gate.weight": 1.89798664706285,
            "value_embeds.0.weight": 46.8390359703184, "value_embeds.1.weight": 47.3060558699048,
            "value_embeds.2.weight": 47.3508412270119,
        },
        20: {
            "attn_gate (all)": 13.318575182826, "c_fc (all)": 54.0324976537697, "c_proj (all)": 51.1488527704382,
            "embed.weight": 284.750411988939, "lm_head.weight": 45.8866973100315, "qkvo_w (all)": 51.1941172959332,
            "scalars": 4.12006845306736, "smear_gate.weight": 1.83376947988418,
            "value_embeds.0.weight": 305.333256613811, "value_embeds.1.weight": 304.748109459187,
            "value_embeds.2.weight": 304.105553947796,
        },},
    },
    "track3": {
        "token_sums": (
            35320, 32267, 31407, 33639, 33825, 34562, 32273, 35921, 35503, 30647, 33399, 33042, 35510, 33369, 30465,
            31627, 32783, 33915, 35862, 31257,
        ),
        "losses": (
            825.889195138906, 820.122453515009, 823.946944850341, 821.501045314532, 838.619681288263,
            813.485589507176, 830.642190628944, 824.399286737091, 821.468449538389, 814.914812882867,
            827.540817915554, 824.803474962509, 820.409012680529, 822.579284364055, 836.635946817785,
            819.486550295676, 814.295643717907, 817.664930485425, 822.275789810923, 824.103561961363,
        ),
        "after": {1: {
            "blocks.0.attn.proj.weight": 5.12091141292985, "blocks.0.attn.q.weight": 5.2481556004345,
            "blocks.0.attn.v.weight": 5.11194617043041, "blocks.0.mlp.fc.weight": 10.3146624239808,
            "blocks.0.mlp.proj.weight": 10.3544272156787, "blocks.1.attn.k.bias": 0.766608106291538,
            "blocks.1.attn.k.weight": 4.96695863860492, "blocks.1.attn.proj.bias": 0.682947584672862,
            "blocks.1.attn.proj.weight": 5.18049274077725, "blocks.1.attn.q.bias": 0.884195026627342,
            "blocks.1.attn.q.weight": 5.00028361111879, "blocks.1.attn.v.bias": 0.73058637483431,
            "blocks.1.attn.v.weight": 5.10082103393279, "blocks.1.mlp.fc.bias": 1.64471424606474,
            "blocks.1.mlp.fc.weight": 10.3196231947156, "blocks.1.mlp.proj.bias": 0.833642016053714,
            "blocks.1.mlp.proj.weight": 10.1723173046662, "blocks.1.norm1.gains": 8.04780450618384,
            "blocks.1.norm2.gains": 7.88309806092274, "embed.weight": 190.60924720879,
            "norm1.gains": 8.02261557824667, "norm2.gains": 7.91452701303754, "proj.bias": 2.30696584023748,
            "proj.weight": 14.3382797441105,
        },
        20: {
            "blocks.0.attn.proj.weight": 5.26029728743274, "blocks.0.attn.q.weight": 5.44140329197284,
            "blocks.0.attn.v.weight": 5.2486015272551, "blocks.0.mlp.fc.weight": 10.7972227353839,
            "blocks.0.mlp.proj.weight": 10.3246265564612, "blocks.1.attn.k.bias": 0.923702914517791,
            "blocks.1.attn.k.weight": 5.16174946007438, "blocks.1.attn.proj.bias": 0.753630733584129,
            "blocks.1.attn.proj.weight": 5.28057666309073, "blocks.1.attn.q.bias": 0.890891814443757,
            "blocks.1.attn.q.weight": 5.2132958608088, "blocks.1.attn.v.bias": 0.869958772650672,
            "blocks.1.attn.v.weight": 5.22273436278058, "blocks.1.mlp.fc.bias": 1.86502132735201,
            "blocks.1.mlp.fc.weight": 10.8249153476291, "blocks.1.mlp.proj.bias": 0.991543289448921,
            "blocks.1.mlp.proj.weight": 10.1722720785226, "blocks.1.norm1.gains": 8.05016044365726,
            "blocks.1.norm2.gains": 7.89897244512486, "embed.weight": 430.888220524205,
            "norm1.gains": 8.03284415644099, "norm2.gains": 6.93761123609317, "proj.bias": 2.67819580925379,
            "proj.weight": 14.2432911919746,
        },},
    },
}  # fmt: skip
"""Record -> sums of the input ids and losses of each step; norms of the parameters after so many steps.

Record 62 has more: norms of the gradients of step 0 (of embedding and head before they are added), of the optimizer's
state after the last step by our names of its parts, and validation losses."""

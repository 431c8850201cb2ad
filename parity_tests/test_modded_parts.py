"""Parts of the modded family: bigram hash, YaRN and rotary tables, documents, sizes, how weights start, errors."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec as P

from jaxgpt.config import Config, MeshConfig, ModdedConfig, from_dict, load, to_dict, to_source
from jaxgpt.config.families.modded import RECORDS
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.yarn import attention_scale, rotary_frequencies
from jaxgpt.data.tokenizer.byte_pairs import GPT2Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.models import init_params, param_shapes
from jaxgpt.models.bigram import bigram_ids
from jaxgpt.models.packed import document_begins
from jaxgpt.models.rope import rotary_tables
from jaxgpt.parallel.mesh import make_mesh
from jaxgpt.parallel.sharding import shard_params
from parity_tests.helpers.modded_cases import cap_by_hand
from parity_tests.helpers.modded_layout import original_shapes
from torch_ref.models import Model as TorchModel
from torch_ref.models import init_params as torch_init_params
from torch_ref.models import param_shapes as torch_param_shapes
from torch_ref.models.bigram import bigram_ids as torch_bigram_ids
from torch_ref.models.loss import token_losses as torch_token_losses
from torch_ref.models.packed import document_begins as torch_document_begins
from torch_ref.models.rope import rotary_tables as torch_rotary_tables

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 251_520
CHANGES = ((3, 7), (7, 11), (11, 13))
NAMES = pytest.mark.parametrize("name", RECORDS)


# The bigram hash


def hash_all(tokens, n_rows=ROWS):
    """Ids of one row by JAX, compiled, by PyTorch, and by numpy with int32 spelled out."""
    tokens_BT = np.array([tokens], np.int32)
    before_BT = np.concatenate([tokens_BT[:, :1] * 0 - 1, tokens_BT[:, :-1]], axis=1)
    positions_BT = np.arange(len(tokens), dtype=np.int32)[None]
    ours = jax.jit(functools.partial(bigram_ids, n_rows=n_rows))(tokens_BT, before_BT, positions_BT)
    tensors = [torch.from_numpy(a) for a in (tokens_BT, before_BT, positions_BT)]
    theirs = torch_bigram_ids(tensors[0], tensors[1], tensors[2], n_rows)
    assert ours.dtype == jnp.int32 and theirs.dtype == torch.int32
    assert ours.tolist() == theirs.tolist()
    return ours[0].tolist()


@pytest.mark.parametrize("x64", [False, True])
def test_bigram_hash(x64):
    """The second id needs the wrap and the floor: without them it is 63566, or negative."""
    tokens = [50256, 50256, 0, 50303, 50256, 1, 2, 3, 198, 198, 262, 11, 13, 50303, 50303, 0, 0, 12345, 50302, 32768,
              32767, 50302]  # fmt: skip
    wanted = [251519, 5862, 8169, 121861, 197134, 37794, 94597, 97765, 71055, 142188, 206286, 199860, 238680, 223563,
              145005, 28551, 0, 77127, 69487, 8236, 141276, 230634]  # fmt: skip
    with jax.enable_x64(x64):
        assert hash_all(tokens) == wanted
        assert hash_all([7, *tokens[1:]]) == wanted, "the second id does not know the first token"
        assert hash_all([*tokens[:1], 7, *tokens[2:]])[2] != wanted[2]
        assert hash_all([9, 1, 2, 3, 9, 4, 9, 5]) == [251519, 159838, 94597, 97765, 125829, 101515, 97790, 98002]
        tokens = np.random.default_rng(7).integers(0, 255, size=97)
        tokens[[0, 19, 20, 53, 80]] = 255
        ids = hash_all(tokens[:96], 1280)
    assert ids[:8] == [1279, 124, 15, 9, 918, 202, 580, 857] and sum(ids) == 63483


# Rotary positions


@pytest.mark.parametrize(
    ("n_changes", "total", "five", "scale", "total64", "some64"),
    [
        (0, 4.98707477608696, (0.167166188359261, 0.0683474987745285, 0.054653275758028, 0.0279445312917233,
                               0.0114253908395767), 0.1, 4.98707467426752, (1, 0.799638231116584, 0.326939767112643,
                          0.167166172301102, 0.0683474942974132, 0.0546532694412343, 0.0279445291618018,
                          0.01142538900807, 0.00467137997673493, 0.0009765625)),
        (1, 4.30149749110569, (0.100042253732681, 0.0332944802939892, 0.0257803909480572, 0.0123408427461982,
                               0.00489659607410431), 0.11694595720774409, 4.30149740750173, (1, 0.799638231116584,
                          0.254507311720329, 0.100042233251879, 0.0332944785701542, 0.0257803872295841,
                          0.0123408417564588, 0.00489659528917284, 0.00200201999002925, 0.000418526785714286)),
        (2, 4.14763827389106, (0.0792314782738686, 0.0226511377841234, 0.0172150582075119, 0.00796325784176588,
                               0.00311601557768881), 0.12751752379570258, 4.14763819908826, (1, 0.799638231116584,
                          0.254507311720329, 0.0792314601918873, 0.0226511366607205, 0.0172150557790702,
                          0.00796325768318163, 0.00311601518401908, 0.00127401272092771, 0.000266335227272727)),
        (3, 4.11007609736407, (0.0736302211880684, 0.0196245294064283, 0.0148107362911105, 0.00676914444193244,
                               0.00263662869110703), 0.1317779884389435, 4.11007601938482, (1, 0.799638231116584,
                          0.254507311720329, 0.0736302051215017, 0.0196245285205526, 0.0148107339888437,
                          0.00676914398305716, 0.00263662823263153, 0.00107801076386191, 0.000225360576923077)),
    ],
    ids=["at first", "3 to 7", "7 to 11", "11 to 13"],
)  # fmt: skip
def test_yarn(n_changes, total, five, scale, total64, some64):
    """Of the original's float32, to 2 ulp; in float64 to 13 digits."""
    narrow, wide = (rotary_frequencies(128, CHANGES[:n_changes], 128, dtype) for dtype in (np.float32, np.float64))
    assert narrow.dtype == np.float32 and wide.dtype == np.float64 and len(wide) == 64 and not wide[32:].any()
    five = np.array(five, np.float32)
    assert (np.abs(narrow[[8, 12, 13, 16, 20]] - five) <= 2 * np.spacing(five)).all()
    assert abs(narrow.astype(np.float64).sum() - total) < 2e-6
    np.testing.assert_allclose(
        [wide.sum(), *wide[[0, 1, 5, 8, 12, 13, 16, 20, 24, 31]]], [total64, *some64], rtol=1e-13
    )
    assert math.isclose(attention_scale(0.1, CHANGES[:n_changes]), scale, rel_tol=1e-15)


TABLES = {
    0: (
        1049467.10485208,
        2099298.50651491,
        ((-0.65625, 0.75390625), (-0.9453125, -0.32421875), (-0.95703125, 0.287109375)),
        ((-0.134765625, -0.9921875), (-0.98828125, -0.1416015625), (-0.65234375, 0.7578125)),
    ),
    1: (
        1055485.74286765,
        2104027.08240902,
        ((-0.208984375, 0.9765625), (0.9765625, 0.2236328125), (0.83984375, -0.54296875)),
        ((-0.9140625, -0.408203125), (-0.98828125, -0.1416015625), (0.78515625, -0.62109375)),
    ),
    2: (
        1043532.68025181,
        2104157.14779492,
        ((-0.208984375, 0.9765625), (-0.10888671875, -0.9921875), (-0.341796875, 0.94140625)),
        ((-0.9140625, -0.408203125), (-0.98828125, -0.1416015625), (-1, 0.0177001953125)),
    ),
    3: (
        1035447.07035992,
        2099319.33304417,
        ((-0.208984375, 0.9765625), (0.8828125, -0.466796875), (-0.8515625, 0.5234375)),
        ((-0.9140625, -0.408203125), (-0.98828125, -0.1416015625), (-1, 0.0177001953125)),
    ),
}
"""By number of changes, of 16,384 rows in bfloat16: sums of cosines, plain and paired; cosine and sine of three
entries, plain and paired."""
PLAIN, PAIRED = ((7, 10), (1000, 33), (16_383, 63)), ((7, 10), (1, 129), (100, 140))
"""Row and column of the entries. The originals' tables hold each number for two channels, with the other sign of the
sine for the second, and those of two heads side by side if paired."""


@pytest.mark.parametrize("n_changes", TABLES)
def test_rotary_tables(n_changes):
    plain, paired, plain_entries, paired_entries = TABLES[n_changes]
    frequencies_R = rotary_frequencies(128, CHANGES[:n_changes], 128, np.float32)
    t = np.arange(16_384)[None, :, None]
    for positions, places, total, entries in (
        (t, PLAIN, plain, plain_entries),
        (2 * t + np.arange(2), PAIRED, paired, paired_entries),
    ):
        tables = rotary_tables(jnp.asarray(positions), jnp.asarray(frequencies_R), jnp.bfloat16)
        cos, sin = (np.asarray(table, np.float64)[0] for table in tables)
        assert abs(2 * cos.sum() - total) < 2
        at = [(row, column // 128, column % 128 // 2) for row, column in places]
        signs = [1 - 2 * (column % 2) for _, column in places]
        found = [(cos[place], sign * sin[place]) for place, sign in zip(at, signs, strict=True)]
        np.testing.assert_allclose(found, entries, atol=2**-7)
        theirs = torch_rotary_tables(torch.from_numpy(positions), torch.from_numpy(frequencies_R), torch.bfloat16)[0]
        assert abs(2 * theirs.double().sum().item() - total) < 2


# Documents


def test_documents_begin_at_bos():
    tokens_BT = np.array([[1, 2, 9, 9, 3, 9], [9, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]], np.int32)
    wanted = [[0, 0, 2, 3, 3, 5], [0] * 6, [0] * 6]
    assert document_begins(tokens_BT, 9).tolist() == wanted
    assert torch_document_begins(torch.from_numpy(tokens_BT), 9).tolist() == wanted


# Sizes


@functools.cache
def full(name, **changes) -> ModdedConfig:
    return ModdedConfig(record=name, seq_len=1024 if name == "track3" else 16_384, **changes).complete(50_257)


@pytest.mark.parametrize(
    ("name", "n_original", "n_unread"),
    [("62", 466_551_946, 2 * 3072 * 768), ("46", 268_665_626, 15), ("track3", 162_354_816, 0)],
)
def test_parameter_counts(name, n_original, n_unread):
    """As many as the original has, without what no layer of it reads; both frameworks, by shapes alone."""
    config = full(name)
    shapes = {path: leaf.shape for path, leaf in param_shapes(config).items()}
    counted = sum(math.prod(shape) for shape in shapes.values())
    assert sum(math.prod(shape) for shape in original_shapes(config).values()) == n_original
    assert counted == config.count_params().total == n_original - n_unread
    theirs = torch_param_shapes(config)
    assert theirs.keys() == shapes.keys() and sum(leaf.numel() for leaf in theirs.values()) == counted
    gains_and_vectors = sum(math.prod(s) for s in shapes.values() if len(s) == 1 or s[-1] == 2)
    tables = sum(math.prod(s) for p, s in shapes.items() if "embed" in p or p == "wte.weight")
    assert config.count_params().linear == counted - gains_and_vectors - tables
    assert (config.vocab_size, config.bos_id, config.n_head) == (50_304, 50_256, 6)


@NAMES
def test_every_parameter_is_placed(name):
    config = full(name)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, data=2, platform="cpu"))
    shardings = shard_params({path: leaf.shape for path, leaf in param_shapes(config).items()}, config, mesh)
    assert shardings["wte.weight"].spec == P("tensor", "fsdp") and "h.6.mlp.c_fc.weight" in shardings


def test_flops_count_windows_and_the_layer_without_attention():
    config = full("62")
    n_keys = 7 * 129 + 2 * 385
    assert [config.window(layer) for layer in range(11)] == [129, 129, 129, 385, 129, 129, 0, 129, 129, 129, 385]
    assert flops_per_token(config) == 6 * config.count_params().linear + 12 * 768 * (n_keys + 129)
    config = full("track3")
    assert flops_per_token(config) == 6 * config.count_params().linear + 12 * 768 * 12 * 1024


# How weights start


@NAMES
def test_fresh_weights(name):
    sizes = {"vocab_size": 512, "bigram_rows": 640 * (name == "62"), "bos_id": 511, "n_embd": 128, "head_dim": 64}
    config = dataclasses.replace(full(name), **sizes)
    params = {path: np.asarray(leaf) for path, leaf in init_params(config).items()}
    zero = {"62": ("attn.c_proj", "mlp.c_proj", "value_embeds", "bigram_embed", "gate", "x0_lambdas", "smear_lambda"),
            "46": ("attn.c_proj", "mlp.c_proj", "lm_head", "gate", "x0_lambdas", "smear_lambda"),
            "track3": ("c_proj", "lm_head", "bias")}[name]  # fmt: skip
    for path, leaf in params.items():
        assert leaf.any() != any(part in path for part in zero), path
    if name == "track3":
        assert abs(params["h.3.mlp.c_fc.weight"].std() / (0.33 / 128) ** 0.5 - 1) < 0.01
        assert (params["h.0.norm2.gains"] == 1).all() and abs(params["wte.weight"].std() - 1) < 0.01
        return
    whole = (3 / 128) ** 0.5
    bounds = {"62": (whole, whole / 2), "46": (whole / 2, whole / 2)}[name]
    for path, bound in zip(("h.4.attn.c_v.weight", "h.4.mlp.c_fc.weight"), bounds, strict=True):
        np.testing.assert_allclose([-params[path].min(), params[path].max()], bound, rtol=1e-3)
    lambdas = {"resid_lambdas": 1.1, "backout_lambda": 0.5, "skip_lambda": -1.5}
    assert all((params[path] == np.float32(value)).all() for path, value in lambdas.items())
    assert params["attn_lambdas"].tolist() == [[0.5, 1.0 if name == "62" else 0.5]] * 11
    if name == "62":
        np.testing.assert_array_equal(params["wte.weight"], params["lm_head.weight"])
        assert abs(params["lm_head.weight"].std() / 0.005 - 1) < 0.01 and (params["bigram_lambdas"] > 0.09).all()
    else:
        assert all(abs(params[path].std() - 1) < 0.01 for path in ("wte.weight", "value_embeds.2.weight"))


def first_losses(config, tokens_BT) -> np.ndarray:
    """The loss of each position, of fresh weights, [B, T]; the mirror's, which draws faster."""
    module = TorchModel(config).bind({k: torch.nn.Parameter(p) for k, p in torch_init_params(config).items()})
    with torch.no_grad():
        x_BTD, weight_VD = module(tokens_BT[:, :-1]), module.head_weight()
        return torch_token_losses(x_BTD, weight_VD, tokens_BT[:, 1:], chunk_len=128, softcap=config.logit_cap).numpy()


def test_first_loss_of_record_62_on_real_text(shakespeare, gpt2_vocabulary):
    """Full width and vocabulary; of the rest, which starts as zeros, little.

    An untrained tied model expects each token to come again: its logit is 768 x 0.005 = 3.84, the others are about 0.
    So a token that does come again costs less than the 10.83 of all others. In Shakespeare each paragraph ends in two
    equal tokens, so that its last tenth has 10.77.
    """
    config = full("62", n_layer=1, window_pattern="S", paired_heads="P", value_embeds="-", skip_from=-1, skip_to=-1,
                  backout_from=0, bigram_rows=7, skip_gate=False)  # fmt: skip
    ids = np.array([config.bos_id, *GPT2Tokenizer().encode(shakespeare.read_text())])
    is_repeat_T = ids[1:] == ids[:-1]
    losses_T = first_losses(config, torch.tensor(ids[None, :513]))[0]
    gain = losses_T[~is_repeat_T[:512]].mean() - losses_T[is_repeat_T[:512]].mean()
    assert abs(losses_T[~is_repeat_T[:512]].mean() - 10.83) < 0.01
    assert abs(gain - (cap_by_hand(config, 3.84) - cap_by_hand(config, 0.0))) < 0.04
    assert abs(10.83 - gain * is_repeat_T[-len(ids) // 10 :].mean() - 10.77) < 0.005


@pytest.mark.parametrize("name", ["46", "track3"])
def test_first_loss_of_a_zero_head(name):
    config = full(name, n_embd=32, head_dim=16)
    np.testing.assert_allclose(first_losses(config, torch.arange(9)[None]), 10.82584, atol=1e-5)


# The config


@NAMES
def test_complete_is_complete(name):
    config = full(name)
    assert config.complete(50_257) == config and config.complete(0) == config
    small = config.shrink(64).complete(300)
    assert (small.vocab_size, small.bos_id, small.n_layer) == (384, 299, 2 if name == "track3" else 11)
    assert small.value_embeds == RECORDS[name]["value_embeds"][: small.n_layer]


def test_yarn_survives_source_and_json(tmp_path):
    config = Config(model=ModdedConfig(seq_len=1024, yarn=((3, 7), (7, 11))))
    written = tmp_path / "config.py"
    written.write_text(to_source(config))
    assert load(written) == from_dict(to_dict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 100}, "model.n_embd=100 is not a multiple of model.head_dim=128; nearest widths: 128, 128"),
        ({"n_layer": 4}, "model.paired_heads=P-P--P---P- has 11 characters, not model.n_layer=4; write one a layer"),
        ({"n_embd": 384}, "model.paired_heads=P-P--P---P- joins pairs of an odd number of heads, 3; choose another"),
        ({"skip_to": 2}, "model.skip_from=3 is not before model.skip_to=2; choose an earlier layer"),
        ({"backout_from": 11}, "model.backout_from=11 is outside [-1, model.n_layer=11); choose a layer, or -1"),
        ({"vocab_size": 50_000, "bos_id": 50_256}, "model.bos_id=50256 is not below model.vocab_size=50000; choose"),
        ({"yarn": ((3,),)}, "model.yarn.0=(3,) is not a pair of windows in blocks; write (from, to), such as (3, 7)"),
        ({"window_pattern": "SXL"}, "model.window_pattern='SXL' has other characters than SL-; see --help"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(InputError) as caught:
        ModdedConfig(**settings).complete(50_257)
    assert message in str(caught.value)

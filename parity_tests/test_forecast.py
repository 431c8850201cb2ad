"""The forecast of a step: kernels read off program text, their FLOPs and bytes by hand, their time by hand."""

import dataclasses

import pytest

from jaxgpt.config import Config, GPT2Config, TrainConfig
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.hardware import GpuDescription
from jaxgpt.errors import InputError
from jaxgpt.plan import __main__ as plan
from jaxgpt.plan.forecast import place
from jaxgpt.plan.kernels import Kernel, Product, list_kernels
from jaxgpt.plan.timing import COLLECTIVE_S, LINKS, Rates, product_s, rates_of, time_step
from jaxgpt.plan.topology import parse_topology
from parity_tests import forecast

PROGRAM = """HloModule step, is_scheduled=true

FileNames
1 "/src/jaxgpt/models/gpt2.py"
2 "/src/jaxgpt/models/layers.py"

FunctionNames
1 "Block.__call__"
2 "MLP.__call__"
3 "gelu"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=9}
2 {file_name_id=1 function_name_id=2 line=20 end_line=20 column=1 end_column=9}
3 {file_name_id=2 function_name_id=3 line=30 end_line=30 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%gemm (a: bf16[512,256], b: bf16[256,1024]) -> bf16[512,1024] {
  %a = bf16[512,256]{1,0} parameter(0)
  %b = bf16[256,1024]{1,0} parameter(1)
  ROOT %d = bf16[512,1024]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%sliced (p: f32[64,8,128], i: s32[]) -> f32[8,128] {
  %p = f32[64,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = f32[1,8,128]{2,1,0} dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,8,128}
  ROOT %r = f32[8,128]{1,0} bitcast(%s)
}

%updated (p: f32[64,8,128], u: f32[8,128], i: s32[]) -> f32[64,8,128] {
  %p = f32[64,8,128]{2,1,0} parameter(0)
  %u = f32[8,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %v = f32[1,8,128]{2,1,0} bitcast(%u)
  ROOT %r = f32[64,8,128]{2,1,0} dynamic-update-slice(%p, %v, %i, %i, %i)
}

%inner (t: (s32[], bf16[512,256])) -> (s32[], bf16[512,256]) {
  %t = (s32[], bf16[512,256]{1,0}) parameter(0)
  %x = bf16[512,256]{1,0} get-tuple-element(%t), index=1
  %w = bf16[256,1024]{1,0} constant({...})
  %g = bf16[512,1024]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm, metadata={op_name="dot_general" stack_frame_id=2}
  %h = bf16[512,1024]{1,0} multiply(%g, %g), metadata={op_name="jit(f)/transpose(jvp())/mul" stack_frame_id=3}
  ROOT %o = (s32[], bf16[512,256]{1,0}) tuple(%n, %x)
}

%outer (t: (s32[], bf16[512,256])) -> (s32[], bf16[512,256]) {
  %t = (s32[], bf16[512,256]{1,0}) parameter(0)
  %w = (s32[], bf16[512,256]{1,0}) while(%t), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %q = bf16[2,512,256]{2,1,0} constant({...})
  %k = bf16[2,256,128]{2,1,0} constant({...})
  %m = (f32[2,512,128]{2,1,0}, s8[4194304]{0}) custom-call(%q, %k), CUBLAS
  ROOT %o = (s32[], bf16[512,256]{1,0}) tuple(%n, %x)
}

ENTRY %main (a: f32[64,8,128], i: s32[]) -> f32[8,128] {
  %a = f32[64,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %u = f32[8,128]{1,0} parameter(2)
  %e = bf16[512,256]{1,0} constant({...})
  %f = bf16[256,128]{1,0} constant({...})
  %w = (s32[], bf16[512,256]{1,0}) while(%z), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %c = f32[512,128]{1,0} convolution(%e, %f), window={size=1}, dim_labels=bf_io->bf
  %cut = f32[8,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%sliced, metadata={op_name="cut"}
  %put = f32[64,8,128]{2,1,0} fusion(%a, %cut, %i), kind=kLoop, calls=%updated, metadata={op_name="put"}
  %ar = f32[1048576]{0} all-reduce-start(%y), replica_groups={{0,1,2,3}}, to_apply=%sum
  %beside = f32[8,128]{1,0} add(%cut, %u)
  %ard = f32[1048576]{0} all-reduce-done(%ar)
  ROOT %r = f32[8,128]{1,0} copy(%beside)
}
""".replace(
    "CUBLAS",
    'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],'
    '"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}',
)


@pytest.fixture(scope="module")
def kernels():
    return {kernel.name: kernel for kernel in list_kernels(PROGRAM, 4)}


def test_a_loop_within_a_loop_counts_its_trips_times(kernels):
    assert kernels["g"].count == kernels["h"].count == 15 and kernels["m"].count == 5 and kernels["cut"].count == 1


def test_a_product_has_the_flops_of_its_shapes_wherever_it_is(kernels):
    assert kernels["g"].products == (Product(1, 512, 1024, 256, "bf16"),)
    assert kernels["g"].flops == 2 * 512 * 1024 * 256
    assert kernels["m"].flops == 2 * 2 * 512 * 128 * 256
    assert kernels["c"].products == (Product(1, 512, 128, 256, "bf16"),)


def test_bytes_are_those_that_a_kernel_touches(kernels):
    assert kernels["g"].n_bytes == 2 * (512 * 256 + 256 * 1024 + 512 * 1024)
    assert kernels["m"].n_bytes == 2 * 2 * (512 * 256 + 256 * 128) + 4 * 2 * 512 * 128, "without cuBLAS's workspace"
    assert kernels["h"].n_bytes == 2 * 3 * 512 * 1024
    row = 8 * 128 * 4
    assert kernels["cut"].n_bytes == 2 * row + 4, "a slice is read and written, and its index read"
    assert kernels["put"].n_bytes == 2 * row + 4, "an update in place reads and writes the row alone"


def test_a_collective_knows_what_runs_beside_it(kernels):
    kind, size, sent = kernels["ar"].collective
    assert (kind, size, sent) == ("all-reduce", 4, 2 * 4 * 2**20 * 3 / 4)
    assert kernels["ar"].beside == (0.0, 3 * 8 * 128 * 4)


def test_a_source_is_the_class_and_function_of_the_model(kernels):
    assert kernels["g"].source == "Block.MLP dot_general"
    assert kernels["h"].source == "Block.MLP.gelu mul backward"


MODEL = GPT2Config(seq_len=256, n_layer=2, n_head=2, n_embd=128, vocab_size=256)
CONFIG = Config(model=MODEL, train=TrainConfig(steps=1, batch_tokens=4 * 1024, micro_batch_size=2, dtype="bfloat16"))
WHOLE = Rates(products=1.0, attention=0.5, memory=1.0, launch_s=1e-6)


def timed(kernels, device="h100", config=CONFIG):
    topology = parse_topology(device)
    return time_step(kernels, place(config, topology), topology, WHOLE)


def cores_of(device):
    compiler = parse_topology(device).device.compiler
    assert isinstance(compiler, GpuDescription)
    return compiler.n_cores


def test_the_time_of_a_step_by_hand():
    """A product that fills the card's tiles, an elementwise kernel, many launches."""
    n_cores = cores_of("h100")
    product = Product(1, 256 * n_cores, 128, 128 * 1023, "bf16")
    kernels = (
        Kernel("product", "", 2, 1000.0, (product,)),
        Kernel("sum", "", 10, 3.35e9),
        Kernel("tiny", "", 1000, 0.0),
    )
    timing = timed(kernels)
    product_flops_s = 989e12 * 1023 / 1024
    by_hand = {
        "product": 2 * (product.flops / product_flops_s + 1e-6),
        "sum": 10 * (3.35e9 / 3350e9 + 1e-6),
        "tiny": 1000 * 1e-6,
    }
    assert {cost.kernel.name: cost.seconds for cost in timing.costs} == pytest.approx(by_hand, rel=1e-6)
    assert timing.step_s == pytest.approx(sum(by_hand.values()), rel=1e-6)
    limits = {cost.kernel.name: cost.limit for cost in timing.costs}
    assert limits == {"product": "compute", "sum": "memory", "tiny": "launch"}
    assert timing.n_launches == 1012


def test_a_product_with_one_tile_too_many_takes_another_round():
    topology, n_cores = parse_topology("a100-40gb"), cores_of("a100-40gb")
    full, more = (
        product_s(Product(1, 256 * tiles, 128, 512, "bf16"), CONFIG, topology, WHOLE)
        for tiles in (n_cores * 2, n_cores * 2 + 1)
    )
    assert 1.05 < more / full < 1.5


def test_attention_has_the_flops_of_the_model():
    """Causal, and 2.5 forward passes backward; a recomputed forward pass counts again."""
    config = place(CONFIG, parse_topology("h100"))
    forward = (flops_per_token(MODEL, causal=True) - 6 * MODEL.count_params().linear) / 3 * 4096
    n_runs = MODEL.n_layer * 4096 // (2 * 256)
    for passes in (1, 2):
        kernels = (
            Kernel("fwd", "", passes * n_runs, 0.0, attention="forward"),
            Kernel("bwd", "", 2 * n_runs, 0.0, attention="backward"),
        )
        timing = time_step(kernels, config, parse_topology("h100"), WHOLE)
        assert timing.product_flops == pytest.approx((passes + 2.5) * forward)


def test_a_collective_lasts_what_the_work_beside_it_does_not_hide():
    alone = Kernel("ar", "", 1, 0.0, collective=("all-reduce", 8, 450e9 * LINKS))
    hidden = dataclasses.replace(alone, beside=(0.0, 3350e9 / 2))
    seconds = [timed((one,), "h100x8").step_s for one in (alone, hidden)]
    assert seconds == pytest.approx([1 + COLLECTIVE_S, 0.5 + COLLECTIVE_S])


def test_the_error_against_public_step_times_is_small():
    """Of GPT-2, track 3 and nanochat on six cards and a processor; python -m parity_tests.forecast prints them."""
    rows = forecast.read_rows()
    used, left_out = forecast.medians(rows)
    assert len(rows) >= 6 and used < 0.15 and left_out < 0.15
    assert all(abs(error) < 0.3 for error, _ in forecast.errors(rows))


@pytest.mark.parametrize(
    "device", ["a100-40gb", "h200", "b200", "rtx3090", "rtx4090", "l4", "t4", "v4x1", "v5e", "v6e"]
)
def test_every_card_has_rates(device):
    rates = rates_of(parse_topology(device).device)
    assert 0 < rates.attention <= rates.products <= 1.1 and 0 < rates.memory < 1  # clocks may be above the data sheet


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("--kernels", "0"), "--kernels=0 is not above 0"),
        (("--kernels", "--estimate"), "--kernels reads one compiled step"),
        (("--kernels", "5", "--device", "h200"), "--kernels reads one compiled step"),
    ],
)
def test_kernels_that_cannot_be_listed_are_one_line(args, part):
    with pytest.raises(InputError, match=part):
        plan.read_arguments(["--config", "gpt2_124m", "--device", "h100", *args])

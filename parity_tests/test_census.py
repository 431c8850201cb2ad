"""Collectives counted from program text: loops, overlapped forms, group notations; bytes by hand."""

import pytest

from jaxgpt.plan.census import gathered_whole, summarize, take_census

GPU = """HloModule step, is_scheduled=true

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ag = ((bf16[2,8], f32[1,4]), (bf16[16,8]{1,0}, f32[8,4]{1,0})) all-gather-start(%a, %b), GROUPS
  %agd = (bf16[16,8]{1,0}, f32[8,4]{1,0}) all-gather-done(%ag)
  %rs = f32[2,8]{1,0} reduce-scatter(%g), replica_groups=[2,8]<=[16], dimensions={0}
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w = (s32[], f32[8,4]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %ar = f32[100]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %r = f32[2] copy(%a)
}
""".replace("GROUPS", "replica_groups=mesh['x'=2,'y'=8], device_ids=([8,2]T(1,0)) {'y'}, use_global_device_ids=true")
TPU = """HloModule step

%start (p: bf16[2,8]) -> (bf16[2,8], bf16[16,8]) {
  %ag.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}
  ROOT %c = (bf16[2,8], bf16[16,8]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%done (p: bf16[2,8]) -> bf16[16,8] {
  %ag.2 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}
  ROOT %c.2 = bf16[16,8] custom-call(%ag.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p: f32[64,8]) -> f32[8,8] {
  %ar = f32[64,8]{0,1:T(8,128)} all-reduce(%p), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %ds = f32[8,8]{0,1:T(8,128)S(1)} dynamic-slice(%ar, %i, %j), dynamic_slice_sizes={8,8}
}

%body (p: (u32[], f32[8,4])) -> (u32[], f32[8,4]) {
  %rs = f32[8,8]{0,1:T(8,128)S(1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %s = (bf16[2,8], bf16[16,8]) fusion(%a), kind=kCustom, calls=%start
  %k = f32[4]{0} custom-call(%q), frontend_attributes={kernel={
}}, metadata={op_name="splash"}
  %d = bf16[16,8] fusion(%s), kind=kCustom, calls=%done
  %cp = (f32[4,4]{1,0}, f32[4,4]{1,0}, u32[], u32[]) collective-permute-start(%k), source_target_pairs={{0,1},{1,0}}
}

%condition (p: (u32[], f32[8,4])) -> pred[] {
  %n = u32[] constant(4)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w = (u32[], f32[8,4]{1,0}) while(%t), condition=%condition, body=%body
}
"""


def test_gpu_program():
    rows = {(kind, size): (count, sent) for kind, size, count, sent in summarize(take_census(GPU, 16))}
    assert rows[("all-gather", 8)] == (10, pytest.approx(10 * (16 * 8 * 2 + 8 * 4 * 4) * 7 / 8))
    assert rows[("reduce-scatter", 8)] == (10, pytest.approx(10 * 2 * 8 * 4 * 8 * 7 / 8))
    assert rows[("all-reduce", 4)] == (1, pytest.approx(2 * 400 * 3 / 4))


def test_tpu_program_counts_an_overlapped_collective_once_and_reads_trips_off_the_condition():
    rows = {(kind, size): (count, sent) for kind, size, count, sent in summarize(take_census(TPU, 8))}
    assert rows[("all-gather", 8)] == (4, pytest.approx(4 * 16 * 8 * 2 * 7 / 8))
    assert rows[("reduce-scatter", 8)] == (4, pytest.approx(4 * 64 * 8 * 4 * 7 / 8)) and ("all-reduce", 8) not in rows
    assert rows[("collective-permute", 8)][0] == 4
    assert rows[("collective-permute", 8)][1] == pytest.approx(4 * 4 * 4 * 4, rel=0.1)


def test_a_parameter_gathered_in_float32_is_named_and_one_in_bfloat16_is_not():
    shapes = {"wpe": (4, 8), "c_fc": (16, 8), "ln": (8,)}
    assert gathered_whole(take_census(GPU, 16), shapes) == {"wpe": 4 * 8 * 4}

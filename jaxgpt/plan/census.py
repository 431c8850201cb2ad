"""Which collectives a compiled program runs, how often, and how many bytes each device sends for them.

Read off the optimized HLO text of one device's program: collectives of the entry and of the loops under it, times the
trips of those loops. A collective that XLA wraps so that it overlaps with other work (async start and done, TPU's
fused collectives) counts once. A TPU's reduce-scatter is a fusion of an all-reduce with the slice that is kept.

Bytes are those of a ring, the least that a device can send: of an array of F bytes over g devices an all-gather or
reduce-scatter moves F (g - 1) / g, an all-reduce twice that, an all-to-all of F bytes on each device F (g - 1) / g, a
permute its piece. References: Thakur et al. 2005; NCCL's performance page on bus bandwidth.
"""

import math
import re
from dataclasses import dataclass, replace

from jaxgpt.plan.hlo import DTYPE_BYTES, Instruction, Program, read_program

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
FUSED_REDUCE_SCATTER = "all-reduce-scatter"
"""What the TPU compiler calls such a fusion; its all-reduce sends half of what one by itself would."""


@dataclass(frozen=True)
class Collective:
    """One instruction of the program.

    Attributes:
      kind: one of KINDS.
      count: times it runs in one step.
      n_devices: that take part together.
      sent_bytes: by one device, each time.
      arrays: dtype and shape of what an all-gather leaves on each device; empty for the other kinds.
    """

    kind: str
    count: int
    n_devices: int
    sent_bytes: float
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()


def take_census(hlo: str, n_devices: int) -> list[Collective]:
    """The collectives of one step.

    Args:
      hlo: `compiled.as_text()`.
      n_devices: of the mesh; the size of groups that the text does not list.
    """
    program = read_program(hlo)
    found: list[Collective] = []
    _walk(program.entry, 1, program, n_devices, found)
    return found


def summarize(collectives: list[Collective]) -> list[tuple[str, int, int, float]]:
    """(kind, devices that take part, times a step, bytes that a device sends for them in a step), one row per pair."""
    totals: dict[tuple[str, int], tuple[int, float]] = {}
    for one in collectives:
        key = (one.kind, one.n_devices)
        count, sent = totals.get(key, (0, 0.0))
        totals[key] = (count + one.count, sent + one.count * one.sent_bytes)
    return [(kind, size, count, sent) for (kind, size), (count, sent) in sorted(totals.items())]


def gathered_whole(
    collectives: list[Collective], shapes: dict[str, tuple[int, ...]], dtype: str = "f32"
) -> dict[str, int]:
    """Parameters that an all-gather puts whole onto each device in the dtype they are stored in -> bytes.

    A weight gathered for its matmul in the dtype of the computation is what fsdp is; the stored one never has to be.
    Arrays are known by dtype and sizes alone, so parameters of one shape answer for each other.
    """
    gathered = {
        tuple(sorted(size for size in shape if size > 1))
        for one in collectives
        for kind, shape in one.arrays
        if kind == dtype and len(shape) > 1
    }
    return {
        path: math.prod(shape) * DTYPE_BYTES[dtype]
        for path, shape in shapes.items()
        if len(shape) > 1 and tuple(sorted(size for size in shape if size > 1)) in gathered
    }


def _walk(computation: str, count: int, program: Program, n_devices: int, found: list[Collective]) -> None:
    for one in program.instructions(computation):
        if one.opcode == "while":
            _walk(loop_body(one), count * program.trips(one.text), program, n_devices, found)
        elif one.opcode in ("call", "conditional"):
            for inner in one.called:
                _walk(inner, count, program, n_devices, found)
        else:
            found += [replace(sent, count=count) for sent in read_collectives(one, program, n_devices)]


def loop_body(loop: Instruction) -> str:
    """Name of the computation that a while instruction repeats."""
    body = re.search(r"body=%?([\w.\-]+)", loop.text)
    assert body, loop.text
    return body[1]


def read_collectives(one: Instruction, program: Program, n_devices: int) -> list[Collective]:
    """What an instruction sends: itself a collective, or one that XLA wraps so that it overlaps with other work."""
    if one.opcode.removesuffix("-start") in KINDS:
        return [_read(one, n_devices)]
    found: list[Collective] = []
    if one.opcode == "async-start":
        for inner in one.called:
            _walk(inner, 1, program, n_devices, found)
    elif one.opcode == "fusion":
        for inner in one.called:
            if any(ASYNC_START in text for text in program.lines.get(inner, ())):
                _walk(inner, 1, program, n_devices, found)
            elif inner.startswith(FUSED_REDUCE_SCATTER):
                reduced: list[Collective] = []
                _walk(inner, 1, program, n_devices, reduced)
                found += [replace(one, kind="reduce-scatter", sent_bytes=one.sent_bytes / 2) for one in reduced]
    return found


def _read(one: Instruction, n_devices: int) -> Collective:
    is_start, kind = one.opcode.endswith("-start"), one.opcode.removesuffix("-start")
    arrays = [(array.dtype, array.shape) for array in one.arrays]
    size = _group_size(one.text, n_devices)
    n_bytes = sum(array.n_bytes for array in one.arrays)
    share = (size - 1) / size
    if kind == "all-reduce":
        sent = 2 * n_bytes * share
    elif kind == "collective-permute":
        sent = n_bytes / 2 if is_start else n_bytes  # a start's type lists the operand beside the result
    elif kind == "all-to-all":
        sent = (n_bytes / 2 if is_start else n_bytes) * share
    else:
        if is_start:
            whole = n_bytes * size / (size + 1)
        else:
            whole = n_bytes * size if kind == "reduce-scatter" else n_bytes
        sent = whole * share
    results = tuple(arrays[len(arrays) // 2 :] if is_start else arrays) if kind == "all-gather" else ()
    return Collective(kind, 1, size, sent, results)


def _group_size(line: str, n_devices: int) -> int:
    """Devices in one replica group: {{0,1},{2,3}}, [2,4]<=[8], or mesh['a'=2,'b'=4] {'b'}, device order between."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    mesh = re.search(r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\](?:, device_ids=\(.*?\))? ?\{([^}]*)\}", line)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        names = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in names)
    return n_devices

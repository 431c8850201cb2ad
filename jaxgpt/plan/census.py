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

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
               "f64": 8, "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)"
    r"=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
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
    computations, entry = _split(hlo)
    found: list[Collective] = []
    _walk(entry, 1, computations, n_devices, found)
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


def _split(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Name of each computation -> its instructions; and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if current is None:
            header = None if line.startswith(" ") else _COMPUTATION.match(line)
            if header and not line.startswith("HloModule"):
                current = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":  # attributes of TPU kernels span lines, some of which begin with a brace
            current = None
        else:
            current.append(line)
    return computations, entry


def _walk(name: str, count: int, computations: dict[str, list[str]], n_devices: int, found: list[Collective]) -> None:
    for line in computations.get(name, ()):
        collective = _COLLECTIVE.search(line)
        if collective:
            found.append(_read(collective, line, count, n_devices))
            continue
        called = [part.strip().lstrip("%") for m in _CALLED.finditer(line) for part in (m[1] or m[2]).split(",")]
        if " while(" in line:
            body = re.search(r"body=%?([\w.\-]+)", line)
            assert body, line
            _walk(body[1], count * _trips(line, computations), computations, n_devices, found)
        elif " fusion(" in line:
            for inner in called:
                if any(ASYNC_START in text for text in computations.get(inner, ())):
                    _walk(inner, count, computations, n_devices, found)
                elif inner.startswith(FUSED_REDUCE_SCATTER):
                    reduced: list[Collective] = []
                    _walk(inner, count, computations, n_devices, reduced)
                    found += [replace(one, kind="reduce-scatter", sent_bytes=one.sent_bytes / 2) for one in reduced]
        elif re.search(r" (call|conditional|async-start)\(", line):
            for inner in called:
                _walk(inner, count, computations, n_devices, found)


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Trips of a loop: XLA's own count, or the constant that its condition compares with; 1 where neither is seen."""
    known = re.search(r'known_trip_count"?[:=]\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    text = "\n".join(computations.get(condition[1], ())) if condition else ""
    constants = re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", text)
    return int(constants[0]) if len(constants) == 1 and "direction=LT" in text else 1


def _read(collective: re.Match, line: str, count: int, n_devices: int) -> Collective:
    shape_text, kind, is_start = collective[1], collective[2], bool(collective[3])
    arrays = [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape_text))
        if dtype in DTYPE_BYTES
    ]
    size = _group_size(line, n_devices)
    n_bytes = sum(math.prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in arrays)
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
    return Collective(kind, count, size, sent, results)


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

"""What a compiled step runs on its device: kernels, how often, their products, the bytes they move, what they wait for.

Read off the optimized program. Each instruction of the entry, or of a loop under it, that is a kernel counts once a
trip. A product has 2 m n k FLOPs by its shapes, wherever XLA put it: a dot, a convolution (TPU), a fusion, a call of
cuBLAS. Bytes are operands read plus results written; an operand that a fusion slices or gathers counts what is taken
of it, a result that is updated in place counts the update. Attention kernels state no FLOPs: they are marked, and
`timing` gives them the model's.

A kernel's source is where its instruction comes from: classes and function, by the program's stack frames.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from jaxgpt.plan.census import loop_body, read_collectives
from jaxgpt.plan.hlo import Array, Instruction, Program, read_program

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency",
        "partition-id", "replica-id", "opt-barrier", "domain")  # fmt: skip
"""Instructions that run nothing on the device."""
ATTENTION = re.compile(r'custom_call_target="(?:__cudnn\$fmha|tpu_custom_call|__gpu\$xla\.gpu\.triton|mosaic)')
NOTHING = re.compile(r'custom_call_target="(?:AllocateBuffer|AssumeGatherIndicesInBound|ConsumeBuffer|Sharding)"')
_PARTS = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
_VIEWS = ("bitcast", "reshape", "convert", "copy")


@dataclass(frozen=True)
class Product:
    """A matrix product [m, k] x [k, n], n_batch times, of operands of one dtype."""

    n_batch: int
    m: int
    n: int
    k: int
    dtype: str

    @property
    def flops(self) -> float:
        return 2.0 * self.n_batch * self.m * self.n * self.k


@dataclass(frozen=True)
class Kernel:
    """What the device runs for one instruction of the program, or for several alike.

    Attributes:
      name: of the instruction; of one, where several are alike.
      source: classes and function of the model, and whether the gradient needs it.
      count: times it runs in one step.
      products: matrix products in it.
      n_bytes: that it moves between memory and chip, each time.
      attention: forward or backward for an attention kernel, else empty.
      collective: kind, devices that take part, bytes that a device sends each time; empty for the others.
      beside: FLOPs and bytes of what runs between the start of an asynchronous kernel and the wait for it; None: the
        device waits at once.
    """

    name: str
    source: str
    count: int
    n_bytes: float
    products: tuple[Product, ...] = ()
    attention: str = ""
    collective: tuple[str, int, float] | tuple[()] = ()
    beside: tuple[float, float] | None = None

    @property
    def flops(self) -> float:
        """Of its products, each time."""
        return sum(product.flops for product in self.products)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Kernel":
        return Kernel(**{
            **values,
            "products": tuple(Product(**one) for one in values["products"]),
            "collective": tuple(values["collective"]),
            "beside": values["beside"] and tuple(values["beside"]),
        })  # fmt: skip


def list_kernels(hlo: str, n_devices: int) -> tuple[Kernel, ...]:
    """The kernels of one step on one device, those alike in one row, in the order in which they first run.

    Args:
      hlo: `compiled.as_text()`.
      n_devices: of the mesh.
    """
    program = read_program(hlo)
    found: list[Kernel] = []
    _walk(program.entry, 1, program, n_devices, found)
    alike: dict[Kernel, tuple[str, int]] = {}
    for one in found:
        key = replace(one, name="", count=0)
        name, count = alike.get(key, (one.name, 0))
        alike[key] = (name, count + one.count)
    return tuple(replace(key, name=name, count=count) for key, (name, count) in alike.items())


def _walk(computation: str, count: int, program: Program, n_devices: int, found: list[Kernel]) -> None:
    made = {one.name: one for one in program.instructions(computation)}
    started: dict[str, int] = {}
    for one in made.values():
        if one.opcode in FREE or NOTHING.search(one.text):
            continue
        if one.opcode == "while":
            _walk(loop_body(one), count * program.trips(one.text), program, n_devices, found)
            continue
        if one.opcode == "conditional":
            branches: list[list[Kernel]] = [[] for _ in one.called]
            for branch, inner in zip(branches, one.called, strict=True):
                _walk(inner, count, program, n_devices, branch)
            found += max(branches, key=_traffic)
            continue
        if one.opcode == "call":
            for inner in one.called:
                _walk(inner, count, program, n_devices, found)
            continue
        waited = next((name for name in one.operands if name in started), "") if _is_done(one, program) else ""
        if waited:
            begin = started.pop(waited)
            between = [kernel for kernel in found[begin + 1 :] if not kernel.collective]
            beside = (sum(k.flops * k.count for k in between) / count, _traffic(between) / count)
            found[begin] = replace(found[begin], beside=beside)
            continue
        kernel = _read(one, count, made, program, n_devices)
        if one.opcode.endswith("-start") or _has(one, program, "AsyncCollectiveStart"):
            started[one.name] = len(found)
        if kernel:
            found.append(kernel)


def _is_done(one: Instruction, program: Program) -> bool:
    return one.opcode.endswith("-done") or _has(one, program, "AsyncCollectiveDone")


def _has(one: Instruction, program: Program, target: str) -> bool:
    """Whether a fusion wraps this half of an asynchronous collective."""
    return one.opcode == "fusion" and any(
        f'"{target}"' in line for inner in one.called for line in program.lines.get(inner, ())
    )


def _traffic(kernels: list[Kernel]) -> float:
    return sum(kernel.n_bytes * kernel.count for kernel in kernels)


def _read(
    one: Instruction, count: int, made: dict[str, Instruction], program: Program, n_devices: int
) -> Kernel | None:
    source = describe_source(one, program)
    sent = read_collectives(one, program, n_devices)
    operands = [made[name] for name in one.operands if name in made]
    if sent:
        kind, size = sent[0].kind, sent[0].n_devices
        sent_bytes = sum(collective.count * collective.sent_bytes for collective in sent)
        return Kernel(one.name, source, count, 0.0, collective=(kind, size, sent_bytes))
    if one.opcode == "fusion":
        inner = one.called[0]
        n_bytes = _fusion_bytes(program.instructions(inner), operands)
        return Kernel(one.name, source, count, n_bytes, tuple(_products(inner, program)))
    written = sum(map(_memory_bytes, one.arrays))
    if one.opcode in _PARTS:
        return Kernel(one.name, source, count, 2 * written)
    if one.opcode in _UPDATES:
        return Kernel(one.name, source, count, 2 * sum(map(_memory_bytes, operands[-1].arrays)))
    if one.opcode.endswith("-start"):  # the type of an asynchronous copy lists destination and source
        return Kernel(one.name, source, count, written)
    n_bytes = written + sum(_memory_bytes(array) for operand in operands for array in operand.arrays)
    if one.opcode == "custom-call" and ATTENTION.search(one.text):
        return Kernel(one.name, source, count, n_bytes, attention="backward" if _is_backward(one) else "forward")
    product = _product(one, [operand.arrays for operand in operands])
    if product and len(one.arrays) > 1:  # cuBLAS's workspace, of which a product touches little
        n_bytes -= sum(map(_memory_bytes, one.arrays[1:]))
    return Kernel(one.name, source, count, n_bytes, (product,) if product else ())


def _memory_bytes(array: Array) -> int:
    return 0 if array.is_on_chip else array.n_bytes


def _fusion_bytes(inside: list[Instruction], operands: list[Instruction]) -> float:
    """Bytes that a fusion reads of its operands and writes."""
    parameters = {
        int(number[1]): one for one in inside if (number := re.search(r" parameter\((\d+)\)", one.text)) is not None
    }
    users: dict[str, list[Instruction]] = {}
    for one in inside:
        for name in one.operands:
            users.setdefault(name, []).append(one)
    read = 0.0
    for number, parameter in parameters.items():
        if number < len(operands) and all(array.is_on_chip for array in operands[number].arrays):
            continue
        whole = sum(map(_memory_bytes, parameter.arrays))
        read += min(whole, _taken(parameter.name, users, whole, whole / max(_n_values(parameter), 1)))
    by_name = {one.name: one for one in inside}
    root = next((one for one in inside if one.is_root), None)
    results = [by_name[name] for name in root.operands] if root and root.opcode == "tuple" else [root] if root else []
    return read + sum(_written(one, by_name) for one in results)


def _n_values(one: Instruction) -> int:
    return sum(math.prod(array.shape) for array in one.arrays)


def _taken(name: str, users: dict[str, list[Instruction]], whole: float, item_bytes: float) -> float:
    """Bytes that the users of a value inside a fusion take of it."""
    taken = 0.0
    for user in users.get(name, ()):
        if user.opcode in _PARTS and user.operands[0] == name:
            taken += _n_values(user) * item_bytes
        elif user.opcode in _UPDATES and user.operands[0] == name:
            continue
        elif user.opcode in _VIEWS and not user.is_root:
            taken += _taken(user.name, users, whole, item_bytes)
        else:
            return whole
    return taken


def _written(one: Instruction, by_name: dict[str, Instruction]) -> float:
    """Bytes that a result of a fusion writes; a scatter also reads what it adds to."""
    source = one
    while source.opcode in _VIEWS and source.operands and source.operands[0] in by_name:
        source = by_name[source.operands[0]]
    if source.opcode in _UPDATES:
        update = by_name[source.operands[1 if source.opcode == "dynamic-update-slice" else -1]]
        return sum(map(_memory_bytes, update.arrays)) * (1 if source.opcode == "dynamic-update-slice" else 2)
    return sum(map(_memory_bytes, one.arrays))


def _products(computation: str, program: Program) -> list[Product]:
    found: list[Product] = []
    made = {one.name: one for one in program.instructions(computation)}
    for one in made.values():
        product = _product(one, [made[name].arrays for name in one.operands if name in made])
        found += [product] if product else []
        if one.opcode in ("fusion", "call"):
            for inner in one.called:
                found += _products(inner, program)
    return found


def _product(one: Instruction, operands: list[tuple[Array, ...]]) -> Product | None:
    """The matrix product that an instruction is; None for every other."""
    if one.opcode == "convolution":
        return _convolution(one, operands[0][0], operands[1][0])
    is_call = one.opcode == "custom-call" and "matmul" in one.text and "dot_dimension_numbers" in one.text
    if one.opcode != "dot" and not is_call:
        return None
    left, right = operands[0][0], operands[1][0]
    if is_call:
        contracted, batched = (_quoted(one.text, f"lhs_{name}_dimensions") for name in ("contracting", "batch"))
    else:
        contracted, batched = one.sizes("lhs_contracting_dims"), one.sizes("lhs_batch_dims")
    n_batch, k = (math.prod(left.shape[axis] for axis in axes) for axes in (batched, contracted))
    m, n = (math.prod(side.shape) // (n_batch * k) for side in (left, right))
    return Product(n_batch, m, n, k, left.dtype)


def _quoted(text: str, name: str) -> tuple[int, ...]:
    found = re.search(rf'"{name}":\[([^\]]*)\]', text)
    return tuple(int(number) for number in re.findall(r"\d+", found[1])) if found else ()


def _convolution(one: Instruction, left: Array, right: Array) -> Product | None:
    """A TPU's products are convolutions; in batched ones the window dilates spatial axes, which sum over nothing."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text)
    if not labels:
        return None
    window = re.search(r"window=\{([^}]*)\}", one.text)
    text = window[1] if window else ""
    sizes = [int(size) for size in (re.search(r"size=([\dx]+)", text) or ["", "1"])[1].split("x")]
    dilated = re.search(r"lhs_dilate=([\dx]+)", text)
    dilations = [int(size) for size in dilated[1].split("x")] if dilated else [1] * len(sizes)
    summed = math.prod(size for size, dilation in zip(sizes, dilations, strict=True) if dilation == 1)
    k = right.shape[labels[2].index("i")] * summed
    n = right.shape[labels[2].index("o")]
    return Product(1, _n_values(one) // n, n, k, left.dtype)


def _is_backward(one: Instruction) -> bool:
    return "transpose(" in one.text or re.search(r"bwd|backward", one.text.split("backend_config")[0], re.I) is not None


def describe_source(one: Instruction, program: Program) -> str:
    """Classes and innermost function of the model that an instruction comes from, and the operation: MLP.gelu mul."""
    line = one.text
    if "op_name=" not in line and one.opcode == "fusion":
        line = next((inner.text for inner in program.instructions(one.called[0]) if inner.is_root), line)
    named = re.search(r'op_name="([^"]*)"', line)
    name = named[1] if named else ""
    calls = program.calls(line)
    classes = list(dict.fromkeys(f.split(".")[0] for _, f in calls if re.match(r"[A-Z]\w*\.", f)))[-2:]
    function = re.sub(r"\.<(locals|lambda)>", "", calls[-1][1]).removesuffix(".__call__") if calls else ""
    parts = classes or [file for file, _ in calls[-1:]]
    parts += [] if function.split(".")[0] in classes else [function.split(".")[-1]]
    words = (".".join(filter(None, parts)) or one.opcode, name.split("/")[-1], "backward" * ("transpose(" in name))
    return " ".join(filter(None, words))

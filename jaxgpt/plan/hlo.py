"""The text of an optimized program: its computations, their instructions, trips of loops, places in the source.

Only what planning needs of XLA's text format: names, arrays, operands; attributes stay text. References: XLA's
documentation "Operation semantics" and its printer of HLO text (`hlo_instruction.cc`).
"""

import functools
import math
import re
from dataclasses import dataclass
from pathlib import PurePath

DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
               "f64": 8, "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)"
    r"=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_FRAME_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclass(frozen=True)
class Array:
    """One array of a result. On chip: in a TPU's vector memory, where reading costs no bandwidth."""

    dtype: str
    shape: tuple[int, ...]
    is_on_chip: bool = False

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      arrays: of the result, several for a tuple; tokens and other values without bytes are left out.
      operands: names of instructions of the same computation.
      text: the line.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def is_root(self) -> bool:
        return self.text.lstrip().startswith("ROOT ")

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls, a loop's body and condition left out."""
        return [part.strip().lstrip("%") for m in _CALLED.finditer(self.text) for part in (m[1] or m[2]).split(",")]

    def sizes(self, attribute: str) -> tuple[int, ...]:
        """The numbers of an attribute such as lhs_contracting_dims={1,2}; empty where it has none."""
        found = re.search(rf"\b{attribute}=\{{([\d,]+)\}}", self.text)
        return tuple(int(size) for size in found[1].split(",")) if found else ()


@dataclass(frozen=True)
class Program:
    """A program of one device.

    Attributes:
      lines: name of each computation -> its lines.
      entry: name of the one that runs.
      frames: number of a stack frame -> (stem of the file, function, number of the calling frame or 0).
    """

    lines: dict[str, list[str]]
    entry: str
    frames: dict[int, tuple[str, str, int]]

    @functools.cached_property
    def _read(self) -> dict[str, list[Instruction]]:
        return {}

    def instructions(self, computation: str) -> list[Instruction]:
        """Of one computation, in the order in which the device runs them. Unknown: none."""
        if computation not in self._read:
            found = (read_instruction(line) for line in self.lines.get(computation, ()))
            self._read[computation] = [one for one in found if one]
        return self._read[computation]

    def trips(self, loop: str) -> int:
        """Trips of a loop's line: XLA's own count, or what its condition compares with; 1 where neither is seen."""
        known = re.search(r'known_trip_count"?[:=]\{"n":"(\d+)"', loop)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop)
        text = "\n".join(self.lines.get(condition[1], ())) if condition else ""
        constants = re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", text)
        return int(constants[0]) if len(constants) == 1 and "direction=LT" in text else 1

    def calls(self, line: str) -> list[tuple[str, str]]:
        """(file, function) from the outermost to the innermost Python call that an instruction comes from."""
        found = re.search(r"stack_frame_id=(\d+)", line)
        number, chain = int(found[1]) if found else 0, []
        while number in self.frames and len(chain) < 100:
            file, function, number = self.frames[number]
            chain.append((file, function))
        return chain[::-1]


def read_program(hlo: str) -> Program:
    """Parses `compiled.as_text()`."""
    lines: dict[str, list[str]] = {}
    tables: dict[str, dict[int, str]] = {name: {} for name in _FRAME_TABLES}
    entry, current, table = "", None, None
    for line in hlo.splitlines():
        if current is not None:
            if line.rstrip() == "}":  # attributes of TPU kernels span lines, some of which begin with a brace
                current = None
            else:
                current.append(line)
            continue
        header = None if line.startswith(" ") else _COMPUTATION.match(line)
        if header and not line.startswith("HloModule"):
            current, table = lines.setdefault(header[2], []), None
            entry = header[2] if header[1] else entry
        elif line in tables:
            table = tables[line]
        elif table is not None and line[:1].isdigit():
            number, _, value = line.partition(" ")
            table[int(number)] = value
    return Program(lines, entry, _read_frames(tables))


def _read_frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[str, str, int]]:
    files, functions = ({n: text.strip('"') for n, text in tables[name].items()} for name in _FRAME_TABLES[:2])
    frames: dict[int, tuple[str, str, int]] = {}
    for number, text in tables["StackFrames"].items():
        numbers = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}
        place = dict(re.findall(r"(\w+)=(\d+)", tables["FileLocations"].get(numbers["file_location_id"], "")))
        file = files.get(int(place.get("file_name_id", 0)), "")
        function = functions.get(int(place.get("function_name_id", 0)), "")
        frames[number] = (PurePath(file).stem, function, numbers["parent_frame_id"] - 1)
    return frames


def read_arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type such as (f32[2,3]{1,0}, /*index=1*/u32[])."""
    found = _ARRAY.findall(re.sub(r"/\*.*?\*/", "", text))
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(1)" in layout)
        for dtype, sizes, layout in found
        if dtype in DTYPE_BYTES
    )


def read_instruction(line: str) -> Instruction | None:
    """None where the line is none."""
    named = _INSTRUCTION.match(line)
    if not named:
        return None
    begin = named.end()
    end = _closing(line, begin) if line[begin] == "(" else line.find(" ", begin)
    opened = line.find("(", end)
    if end < 0 or opened < 0:
        return None
    closed = _closing(line, opened)
    operands = tuple(re.findall(r"%([\w.\-]+)", line[opened:closed]))
    return Instruction(named[1], line[end:opened].strip(), read_arrays(line[begin:end]), operands, line)


def _closing(text: str, opened: int) -> int:
    """Index after the parenthesis that closes the one at `opened`; the end where none does."""
    depth = 0
    for found in re.finditer(r"[()]", text[opened:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return opened + found.end()
    return len(text)

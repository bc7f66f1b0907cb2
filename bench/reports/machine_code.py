"""NVIDIA machine code of one kernel: its instructions, its loops, and what an iteration of a loop consists of.

``read`` takes a cubin apart with the cuobjdump that Triton carries; ``parse`` takes the text of ``cuobjdump -sass``.
A loop is what lies between a branch back and its target: on sm_90, whose loops alone are looked at, nothing of one lies
elsewhere.

Counts are of one warp. An HGMMA is one instruction of four warps (a warpgroup) together: each counts a quarter of it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dogo_fast.ops.compiling import dump, resources

LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.MULTILINE)
ADDRESS = re.compile(r"0x([0-9a-f]+)\)?$")
WARP = 32
WARPGROUP = 4
BANKS = 128
"""Bytes that all banks of shared memory hand out in a pass."""

CLASSES = {
    "product": r"[HQI]GMMA|[HIQ]MMA|UTC\w*MMA",
    "exp2": r"MUFU\.EX2",
    "special": r"MUFU",  # reciprocals, roots, logarithms
    "conversion": r"F2F|F2I|I2F|FRND",
    "packing": r"F2FP|I2FP|F2IP",
    "fp32": r"FFMA\w*|FADD\w*|FMUL\w*|H(?:FMA|ADD|MUL)2\w*",
    "multiply": r"IMAD\w*",
    "shared": r"LDS|STS|LDSM|STSM|ATOMS",
    "shuffle": r"SHFL|REDUX",
    "local": r"LDL|STL",
    "other": r"D(?:FMA|ADD|MUL|SETP)|LDG|STG|LDGSTS|UTMALDG|UTMASTG|RED|ATOMG?|LDTM|STTM|UTCCP"
    r"|BAR|DEPBAR|LDGDEPBAR|UTCBAR|WARPGROUP|WARPSYNC|SYNCS|MEMBAR|FENCE|ARRIVES"
    r"|BRA|BRX|JMP|CALL|RET|EXIT|BSSY|BSYNC|BREAK|NOP|BPT|NANOSLEEP|ELECT"
    r"|U\w+|R2UR|S2UR|LDCU|VOTEU|LDC|S2R|CS2R",  # global memory, barriers, control, uniform registers, constants
}
"""Class of an instruction: the first whose pattern its opcode begins with; all others are "integer": integers, logic,
comparisons, minima, selections (FSEL, FSETP and FMNMX too: they share the integers' lanes) and moves."""

_CLASSES = {name: re.compile(rf"(?:{pattern})(?:\.|$)") for name, pattern in CLASSES.items()}
INTEGER, OTHER = "integer", "other"


class Instruction(NamedTuple):
    """``predicate``: as ``"!P0"``, "" where there is none. ``opcode``: with its suffixes, as ``"MUFU.EX2"``."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without suffixes."""
        return self.opcode.split(".", 1)[0]

    @property
    def never(self) -> bool:
        """Whether it is predicated off for good: a filler that only takes its issue slot."""
        return self.predicate == "!PT"

    @property
    def kind(self) -> str:
        """Its entry in CLASSES, or "integer"."""
        return next((name for name, pattern in _CLASSES.items() if pattern.match(self.opcode)), INTEGER)

    @property
    def target(self) -> int | None:
        """Where a branch goes to."""
        found = ADDRESS.search(self.operands) if self.name == "BRA" and not self.never else None
        return int(found[1], 16) if found else None


class Code(NamedTuple):
    """A kernel as the compiler made it: registers and bytes of stack (spilled registers) a thread, instructions."""

    registers: int
    stack: int
    instructions: list[Instruction]

    def number(self, kind: str) -> int:
        """How many instructions of a class the code has, wherever they are."""
        return sum(instruction.kind == kind for instruction in self.instructions)

    @property
    def serialised(self) -> bool:
        """Whether every product of Hopper's tensor cores waits for the one before, as ptxas makes them where it cannot
        follow their accumulators (its warning C7515): else a wait is behind several, the chunks of 16 columns."""
        opcodes = [each.opcode for each in self.instructions]
        products = sum(each.startswith("HGMMA") for each in opcodes)
        return 0 < products <= sum(each.startswith("WARPGROUP.DEPBAR") for each in opcodes)


def read(cubin: bytes) -> Code:
    """Take a compiled kernel apart.

    Raises:
        ValueError: it has no function, or several.
        subprocess.CalledProcessError: cuobjdump does not know the file.
    """
    return Code(*resources(cubin), parse(dump(cubin, "-sass")))


def parse(sass: str) -> list[Instruction]:
    """Instructions of the one function in the text of ``cuobjdump -sass``.

    Raises:
        ValueError: there is none, or several.
    """
    instructions = [
        Instruction(int(address, 16), predicate or "", opcode, operands)
        for address, predicate, opcode, operands in LINE.findall(sass)
    ]
    if not instructions or any(later.address <= earlier.address for earlier, later in itertools.pairwise(instructions)):
        raise ValueError(f"sass must be the code of one function, got {sass.count('Function :')} functions in it")
    return instructions


# What is counted


@dataclass
class Counts:
    """Instructions of one warp by class, and what some of them move and multiply.

    ``flop`` has the floating-point operations of products by operand type ("BF16", "F16", "TF32"); those of sm_100's
    instructions, which do not say their shape, are missing. ``bank_bytes``: those for which the banks of shared memory
    are busy at the least, the operands of HGMMA included; lanes that load the same address share it, which the code
    does not show, so that a load (LDS) counts one pass of 128 bytes, however wide.
    """

    classes: Counter[str] = field(default_factory=Counter)
    flop: Counter[str] = field(default_factory=Counter)
    fp32: int = 0  # packed ones twice
    fused: int = 0  # FFMA among them
    bank_bytes: int = 0
    operand_bytes: int = 0  # those that HGMMA reads

    @property
    def issued(self) -> int:
        """All instructions."""
        return sum(self.classes.values())


def count(instructions: Iterable[Instruction]) -> Counts:
    """Counts of instructions each of which runs once."""
    counts = Counts()
    for instruction in instructions:
        kind = OTHER if instruction.never else instruction.kind
        counts.classes[kind] += 1
        if kind == "fp32":
            packed = re.match(r"F\w+2\b", instruction.opcode) is not None
            counts.fp32 += 2 if packed else 1
            if instruction.name.startswith("FFMA"):
                counts.fused += 2 if packed else 1
        elif kind == "product":
            _count_product(instruction, counts)
        elif kind == "shared" or instruction.name == "LDGSTS":
            moved = WARP * access_bytes(instruction.opcode)
            counts.bank_bytes += min(moved, BANKS) if instruction.name == "LDS" else moved
    return counts


def _count_product(instruction: Instruction, counts: Counts) -> None:
    """HGMMA.64xNxK reads a key operand [K, N] and, unless it lies in registers, a row operand [64, K] from shared
    memory. HMMA.16816 is m16n8k16 of one warp."""
    _, shape, *types = (*instruction.opcode.split("."), "")
    dtype = next((each for each in types if each in ("BF16", "TF32")), "F16")  # float16 goes without saying
    if found := re.fullmatch(r"64x(\d+)x(\d+)", shape):
        columns, depth = int(found[1]), int(found[2])
        counts.flop[dtype] += 2 * 64 * columns * depth // WARPGROUP
        rows = 64 if instruction.operands.split(", ")[1].startswith("gdesc") else 0
        operands = 32 * (columns + rows) // WARPGROUP  # every depth is 32 bytes
        counts.bank_bytes += operands
        counts.operand_bytes += operands
    elif found := re.fullmatch(r"168(\d+)", shape):
        counts.flop[dtype] += 2 * 16 * 8 * int(found[1])


def access_bytes(opcode: str) -> int:
    """Bytes a thread that a load or store moves. LDSM and STSM move 8 × 8 matrices of sixteen bits, 4 bytes a thread
    each."""
    parts = opcode.split(".")
    if parts[0] in ("LDSM", "STSM"):
        return 4 * int(parts[-1]) if parts[-1].isdigit() else 4
    for part, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if part in parts:
            return size
    return 4


# Loops


@dataclass(frozen=True)
class Loop:
    """Its instructions, those of the loops within it included, which are ``inner``."""

    instructions: list[Instruction]
    inner: list["Loop"]

    @property
    def head(self) -> int:
        """Its first address."""
        return self.instructions[0].address

    @property
    def end(self) -> int:
        """The address of the branch back."""
        return self.instructions[-1].address

    def has(self, kind: str) -> bool:
        """Whether there is an instruction of a class."""
        return any(each.kind == kind for each in self.instructions)

    def working(self, kind: str) -> list["Loop"]:
        """The loops within that have a class of instructions, where none is outside of them; else none."""
        own, _ = self.path()
        if any(each.kind == kind for each in own):
            return []
        hot = [each for each in self.inner if each.has(kind)]
        return [inner for each in hot for inner in (each.working(kind) or [each])]

    def path(self) -> tuple[list[Instruction], list["Loop"]]:
        """An iteration as it usually goes: (instructions outside inner loops, inner loops that it passes).

        It takes every branch ahead that leaves out no product and no exponential: these skip what runs in few
        iterations, such as the masks of diagonal and ragged tiles.
        """
        own: list[Instruction] = []
        passed: list[Loop] = []
        inner = {each.head: each for each in self.inner}
        onward = self.head
        for each in self.instructions:
            if each.address < onward:
                continue
            if within := inner.get(each.address):
                passed.append(within)
                onward = within.end + 1
                continue
            own.append(each)
            if each.target is not None and each.address < each.target <= self.end and self._may_skip(each):
                onward = each.target
        return own, passed

    def _may_skip(self, branch: Instruction) -> bool:
        left_out = [each for each in self.instructions if branch.address < each.address < (branch.target or 0)]
        return not branch.predicate or not any(each.kind in ("product", "exp2") for each in left_out)


def loops(instructions: list[Instruction]) -> list[Loop]:
    """The outermost loops, by address."""
    ends: dict[int, int] = {}
    for each in instructions:
        if each.target is not None and each.target < each.address:
            ends[each.target] = each.address  # of several branches to a place the last
    return _within(instructions, ends)


def _within(instructions: list[Instruction], ends: dict[int, int]) -> list[Loop]:
    found: list[Loop] = []
    for head, end in sorted(ends.items()):
        if not found or head > found[-1].end:
            inside = [each for each in instructions if head <= each.address <= end]
            within = {start: stop for start, stop in ends.items() if head < start and stop <= end}
            found.append(Loop(inside, _within(inside, within)))
    return found


def hot_loops(found: list[Loop]) -> list[Loop]:
    """Those that multiply on tensor cores; failing that, those that take exponentials. Of a loop that only repeats
    others, such as one over row blocks, those."""
    for kind in ("product", "exp2"):
        if hot := [each for each in found if each.has(kind)]:
            return [inner for each in hot for inner in (each.working(kind) or [each])]
    return []

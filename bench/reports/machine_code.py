"""NVIDIA machine code of one kernel: its instructions, its loops, and what an iteration of a loop consists of.

``read`` takes a cubin apart with the cuobjdump that Triton carries; ``parse`` takes the text of ``cuobjdump -sass``.
``loops`` finds the natural loops of the control flow: a branch back to a block that every way to the branch passes.
That also holds blocks which the compiler moved behind the end of the kernel, as it does with waits on sm_100.

Counts are of one warp. An HGMMA is one instruction of four warps (a warpgroup) together: each counts a quarter of it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import networkx

from dogo_fast.ops.compiling import dump, resources

LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.MULTILINE)
ADDRESS = re.compile(r"0x([0-9a-f]+)\)?$")
GUARD = re.compile(r"^!?U?P[T\d]")
INSTRUCTION_BYTES = 16
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
    "fp64": r"D(?:FMA|ADD|MUL|SETP)",
    "shared": r"LDS|STS|LDSM|STSM|ATOMS",
    "shuffle": r"SHFL|REDUX",
    "global": r"LDG|STG|LDGSTS|UTMALDG|UTMASTG|RED|ATOMG?",
    "local": r"LDL|STL",
    "tensor memory": r"LDTM|STTM|UTCCP",
    "barrier": r"BAR|DEPBAR|LDGDEPBAR|UTCBAR|WARPGROUP|WARPSYNC|SYNCS|MEMBAR|FENCE|ARRIVES",
    "control": r"BRA|BRX|JMP|CALL|RET|EXIT|BSSY|BSYNC|BREAK|NOP|BPT|NANOSLEEP|ELECT",
    "uniform": r"U\w+|R2UR|S2UR|LDCU|VOTEU",
    "constant": r"LDC|S2R|CS2R",
}
"""Class of an instruction: the first whose pattern its opcode begins with; all others are "integer": integers, logic,
comparisons, minima, selections (FSEL, FSETP and FMNMX too: they share the integers' lanes) and moves."""

_CLASSES = {name: re.compile(rf"(?:{pattern})(?:\.|$)") for name, pattern in CLASSES.items()}
INTEGER = "integer"


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
        """Where a branch goes to. A call of the instruction after the next is one too: the compiler leaves loops so,
        over the branch back. Other calls return."""
        found = ADDRESS.search(self.operands) if self.name in ("BRA", "CALL") else None
        address = int(found[1], 16) if found else None
        over = self.address + 2 * INSTRUCTION_BYTES
        return address if self.name == "BRA" or address == over else None

    @property
    def ends(self) -> bool:
        """Whether the next instruction does not follow."""
        if self.name not in ("BRA", "BRX", "JMP", "EXIT", "RET", "BPT"):
            return False
        return self.predicate in ("", "PT") and not GUARD.match(self.operands)


class Code(NamedTuple):
    """A kernel as the compiler made it: registers and bytes of stack (spilled registers) a thread, instructions."""

    registers: int
    stack: int
    instructions: list[Instruction]

    def number(self, kind: str) -> int:
        """How many instructions of a class the code has, wherever they are."""
        return sum(instruction.kind == kind for instruction in self.instructions)


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
        kind = "control" if instruction.never else instruction.kind
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


class Block(NamedTuple):
    """Instructions that run one after the other; where they go on, by the first address of each block."""

    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]


@dataclass
class Loop:
    """A natural loop: the blocks it consists of by address, those of the loops within it included."""

    head: int
    blocks: dict[int, Block]
    inner: list["Loop"] = field(default_factory=list)

    @property
    def instructions(self) -> list[Instruction]:
        """All of them, inner loops included."""
        return [each for address in sorted(self.blocks) for each in self.blocks[address].instructions]

    @property
    def is_wait(self) -> bool:
        """Whether it only polls a barrier."""
        return any(each.name == "SYNCS" for each in self.instructions) and len(self.instructions) < 8

    def path(self) -> tuple[list[Instruction], list["Loop"]]:
        """An iteration as it usually goes: (instructions outside inner loops, inner loops that it passes).

        Of all ways through the loop, those which leave out no product and no exponential, and of them the shortest:
        it skips what runs in few iterations, such as the masks of diagonal and ragged tiles.
        """
        inner = {each.head: each for each in self.inner}
        head_of = {address: each.head for each in self.inner for address in each.blocks}
        ways = networkx.DiGraph()
        for address, block in self.blocks.items():
            node = head_of.get(address, address)
            inside = [each for each in block.successors if each in self.blocks]
            onward = {END if each == self.head else head_of.get(each, each) for each in inside} - {node}
            ways.add_edges_from((node, each) for each in onward)

        def cost(node: int, following: int, _: object) -> int:
            work = inner[node].instructions if node in inner else self.blocks[node].instructions
            return len(work) - MOST_INSTRUCTIONS * sum(each.kind in ("product", "exp2") for each in work)

        passed = networkx.bellman_ford_path(ways, self.head, END, cost)[:-1]
        own = [each for node in passed if node not in inner for each in self.blocks[node].instructions]
        return own, [inner[node] for node in passed if node in inner]


END = -1
MOST_INSTRUCTIONS = 1 << 24


def blocks(instructions: list[Instruction]) -> dict[int, Block]:
    """The control flow from the first instruction; code that only calls reach is left out."""
    after = {each.address: later.address for each, later in itertools.pairwise(instructions)}
    starts = {instructions[0].address}
    for each in instructions:
        if each.target is not None:
            starts.add(each.target)
        if (each.target is not None or each.ends) and each.address in after:
            starts.add(after[each.address])
    out: dict[int, Block] = {}
    run: list[Instruction] = []
    for each in instructions:
        run.append(each)
        following = after.get(each.address)
        if following is None or following in starts:
            goes_on = [] if each.ends or following is None else [following]
            jumps = [] if each.target is None or each.never else [each.target]
            out[run[0].address] = Block(tuple(run), tuple(dict.fromkeys(jumps + goes_on)))
            run = []
    reached = {instructions[0].address, *networkx.descendants(_graph(out), instructions[0].address)}
    return {address: block for address, block in out.items() if address in reached}


def _graph(found: dict[int, Block]) -> Any:
    graph = networkx.DiGraph()
    graph.add_nodes_from(found)
    graph.add_edges_from((start, end) for start, block in found.items() for end in block.successors if end in found)
    return graph


def loops(instructions: list[Instruction]) -> list[Loop]:
    """All loops by address, outer before inner; ``Loop.inner`` has those directly within."""
    by_address = blocks(instructions)
    graph = _graph(by_address)
    found: list[Loop] = []

    def search(inside: Any) -> list[Loop]:
        """Those of a part of the graph: the blocks that reach each other, entered at the head."""
        outer = []
        for body in networkx.strongly_connected_components(inside):
            if not inside.subgraph(body).edges:
                continue
            entered = [each for each in body if not body.issuperset(graph.predecessors(each))]
            head = min(entered or body)
            inner = search(inside.subgraph(body - {head}))
            outer.append(Loop(head, {address: by_address[address] for address in sorted(body)}, inner))
        found.extend(outer)
        return outer

    search(graph)
    return sorted(found, key=lambda loop: (loop.head, -len(loop.blocks)))


def hot_loops(found: list[Loop]) -> list[Loop]:
    """The outermost loops that multiply on tensor cores; failing that, the largest ones that take exponentials;
    failing that, the largest."""
    inner = {id(each) for loop in found for each in loop.inner}
    outer = [loop for loop in found if id(loop) not in inner and not loop.is_wait]
    for kind in ("product", "exp2"):
        hot = [loop for loop in outer if any(each.kind == kind for each in loop.instructions)]
        if hot:
            return hot
    return sorted(outer, key=lambda loop: len(loop.instructions))[-1:]

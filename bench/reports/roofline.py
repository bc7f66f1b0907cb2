"""The static roofline: what limits every kernel, read from its machine code, without a GPU.

    python -m dogo_fast.bench.reports.roofline [--target sm_90] [--out PREFIX]

Each kernel is compiled, the loops over its tiles are found in the machine code, and the instructions of one iteration
are counted (machine_code.py). An architecture's published throughputs turn the counts into clocks of one
multiprocessor, pipe by pipe; the pipe that takes most is the limiter. Beside it stands the bound of the work that the
loss needs (work.py) on the same multiprocessor.

These are clocks, not times: latencies, waits at barriers, the caches, bank conflicts, instruction fetch and the
device's memory are left out, so a measured kernel is slower. Two figures enclose what the counted instructions allow:
all pipes busy at the same time ("overlapped"), and products taking turns with everything else ("in turns"), as they do
within a warp, which waits for each product before it uses it.

Tiles an iteration: the counted FLOP of an iteration, divided by those of a tile (work.py.tile_loops), must be a
whole number, and its exponentials must agree. A loop within an iteration (rows of several chunks) runs as often as the
products need that are missing then. Products of float32 in full precision are FFMA and are matched within a tenth.
sm_100's products do not say their shape, so its kernels are not read.
"""

import argparse
import heapq
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel

from dogo_fast.atomic import write_atomically
from dogo_fast.measuring import compiler_versions
from dogo_fast.ops.compiling import MULTIPROCESSORS, KernelCase, buffer_bytes, build, launches
from dogo_fast.ops.launches import Launch

from ..per_kernel import PASSES, moved, shape_of
from ..records import KernelInfo, KernelsInfo, read
from ..tables import MISSING, table
from ..work import TileLoop, needed, tile_loops
from . import machine_code
from .compile_report import refuse_the_interpreter
from .machine_code import WARP, Code, Counts, Instruction, Loop, blocks, count, hot_loops, loops

MOST_TILES = 8
"""Tiles that an iteration may have after unrolling."""


@dataclass(frozen=True)
class Architecture:
    """What a multiprocessor does in a clock, and what it holds.

    Args:
        products: FLOP on the tensor cores, without sparsity, by operand type.
        fp32_lanes: additions, multiplications or both fused, of float32.
        integer_lanes: integer additions, logic, comparisons, minima, selections; integer multiply-adds as well.
        special_lanes: exponentials, reciprocals, and conversions between integers and floats.
        shared_bytes: through shared memory.
        issue: instructions of a warp.
    """

    products: Mapping[str, int]
    fp32_lanes: int
    integer_lanes: int = 64
    special_lanes: int = 16
    shared_bytes: int = 128
    issue: int = 4

    def product_rate(self, dtype: str) -> int:
        """FLOP a clock of products; of float32 in full precision, on the ordinary lanes."""
        return 2 * self.fp32_lanes if dtype == "F32" else self.products[dtype]


# Throughputs a clock and multiprocessor: CUDA C++ Programming Guide, "Arithmetic Instructions", table of native
# arithmetic instructions (lanes). Tensor cores:
# NVIDIA's A100 and H100 architecture papers (1024 and 2048 dense fp16 multiply-adds). Shared memory: 32 banks of 4
# bytes. Conversions share the special-function unit: Nsight Compute's documentation of the XU pipe.
ARCHITECTURES = {
    "sm_80": Architecture({"BF16": 2048, "F16": 2048, "TF32": 1024}, fp32_lanes=64),
    "sm_90": Architecture({"BF16": 4096, "F16": 4096, "TF32": 2048}, fp32_lanes=128),
}
OPERANDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
PIPES = ("tensor", "special", "fp32", "integer", "issue", "shared")


def pipe_clocks(counts: Counts, warps: int, architecture: Architecture) -> dict[str, float]:
    """Clocks for which each pipe of a multiprocessor is busy with the counts of each of a program's warps."""
    lanes, classes = WARP * warps, counts.classes
    multiply = classes["multiply"] * lanes
    special = classes["exp2"] + classes["special"] + classes["conversion"]
    return {
        "tensor": sum(flop * warps / architecture.products[dtype] for dtype, flop in counts.flop.items()),
        "special": special * lanes / architecture.special_lanes,
        # integer multiply-adds run on these lanes too, at the integers' rate
        "fp32": max((counts.fp32 * lanes + multiply) / architecture.fp32_lanes, multiply / architecture.integer_lanes),
        "integer": (classes["integer"] + classes["packing"]) * lanes / architecture.integer_lanes,
        "issue": counts.issued * warps / architecture.issue,
        "shared": (counts.bank_bytes * warps + 4 * classes["shuffle"] * lanes) / architecture.shared_bytes,
    }


class LoopPrediction(BaseModel):
    """One loop over tiles. ``clocks``: of a multiprocessor for one tile, by pipe; ``in_turns``: if products took turns
    with the rest; ``per_element``: of the counts."""

    name: str
    tiles_an_iteration: int
    clocks: dict[str, float]
    in_turns: float
    per_element: dict[str, float]

    @property
    def overlapped(self) -> float:
        """Clocks of the busiest pipe."""
        return max(self.clocks.values())


class Prediction(BaseModel):
    """One kernel of one case. Clocks are of one multiprocessor for each of N² pairs of rows (a pixel of a view for the
    augmentation), None where the kernel has no tiles; ``busiest_*``: the part of the launch's clocks that the
    multiprocessor has that has most. ``bytes_moved``: of inputs read once and outputs written once, where that is what
    counts."""

    target: str
    case: KernelCase
    kernel: str
    tile: str
    warps: int
    registers: int
    stack: int
    programs: int
    loops: list[LoopPrediction] = []
    limiter: str = "memory"
    clocks_needed: float | None = None
    clocks_overlapped: float | None = None
    clocks_in_turns: float | None = None
    busiest_overlapped: float | None = None
    busiest_in_turns: float | None = None
    bytes_moved: int | None = None
    unmatched: list[str] = []

    @property
    def shares(self) -> list[float]:
        """The bound as a part of the clocks, overlapped and in turns; empty where the kernel has no tiles."""
        if self.clocks_needed is None or self.clocks_overlapped is None or self.clocks_in_turns is None:
            return []
        return [self.clocks_needed / self.clocks_overlapped, self.clocks_needed / self.clocks_in_turns]

    def seconds(self, clock: float) -> list[float]:
        """At ``clock`` Hz, of the busiest multiprocessor: all pipes busy at once, and in turns. Empty where the kernel
        has no tiles."""
        ways = ((self.clocks_overlapped, self.busiest_overlapped), (self.clocks_in_turns, self.busiest_in_turns))
        pairs = self.case.N**2 / clock
        return [pairs * clocks * part for clocks, part in ways if clocks is not None and part is not None]


class Buffers(BaseModel):
    """Bytes that the launches of a case are given; see ``buffer_bytes``."""

    case: KernelCase
    bytes: int


class Report(BaseModel):
    versions: dict[str, str | None] = {}
    predictions: list[Prediction] = []
    buffers: list[Buffers] = []


def load_report(path: Path) -> Report:
    """Raises NotARecord."""
    return read(path, Report, "a report of the static roofline")


# From the loops of the machine code to clocks a tile


@dataclass(frozen=True)
class Tiles:
    """What a kernel's loops are matched against: the launch's kinds of tiles, and how a program sees one."""

    rows: int
    keys: int
    warps: int
    kinds: list[TileLoop]

    @property
    def elements(self) -> int:
        return self.rows * self.keys

    def flop(self, kind: TileLoop) -> float:
        """Of one warp for one tile."""
        return 2 * self.elements * sum(kind.widths) / self.warps


def _product_signature(instructions: list[Instruction]) -> dict[str, int]:
    out: dict[str, int] = {}
    for each in instructions:
        if each.kind == "product":
            out[each.opcode] = out.get(each.opcode, 0) + 1
    return out


def _trips(own: list[Instruction], inner: list[Loop], kind: TileLoop, tiles: Tiles) -> list[int]:
    """How often each loop over chunks of columns runs in a tile: as often as a product has chunks, less the chunks
    that were peeled off into the tile's own code, seen by the same product instructions. Loops that look alike share
    what was peeled off evenly."""
    whole = 2 * tiles.elements * max(kind.widths) / tiles.warps
    paths = [each.path()[0] for each in inner]
    signatures = [_product_signature(path) for path in paths]
    outside = _product_signature(own)
    out = []
    for index, (path, signature) in enumerate(zip(paths, signatures, strict=True)):
        flop = sum(count(path).flop.values())
        if not flop:  # ordinary lanes: what the tile's own code lacks, shared evenly
            missing = tiles.flop(kind) / (2 * WARP) - count(own).fused
            out.append(max(0, round(missing / sum(count(each).fused for each in paths))))
            continue
        opcode = next(iter(signature))
        alike = sum(opcode in each for each in signatures)
        before = sum(opcode in each for each in signatures[:index])
        chunks = outside.get(opcode, 0) // signature[opcode]
        out.append(round(whole / flop) - (chunks + alike - 1 - before) // alike)
    return out


def _match(loop: Loop, tiles: Tiles) -> tuple[TileLoop, int, Counts] | None:
    """(kind of tile, tiles an iteration, counts of an iteration) of a loop; None if it is none of the kinds."""
    own, passed = loop.path()
    inner = [each for each in passed if not each.is_wait]
    best: tuple[float, TileLoop, int, Counts] | None = None
    for kind in tiles.kinds:
        repeated = zip(inner, _trips(own, inner, kind, tiles), strict=True)
        counts = count([*own, *(each for loop, trips in repeated for each in loop.path()[0] * trips)])
        for number in range(1, MOST_TILES + 1):
            off = _product_mismatch(counts, tiles.flop(kind) * number)
            wanted = kind.exponentials * number * tiles.elements / (WARP * tiles.warps)
            off_exponentials = abs(counts.classes["exp2"] / wanted - 1)
            if off <= 1 and off_exponentials <= 0.25 and (best is None or off + off_exponentials < best[0]):
                best = off + off_exponentials, kind, number, counts
    return best[1:] if best else None


def _lane_flop(counts: Counts, flop: float) -> int:
    """FLOP of products on the ordinary lanes: FFMA count as such where the tensor cores' are short of those wanted."""
    return 0 if sum(counts.flop.values()) > 0.99 * flop else counts.fused * 2 * WARP


def _product_mismatch(counts: Counts, flop: float) -> float:
    """From 0, as many as wanted, to 1, the most that is accepted, and beyond."""
    tensor = sum(counts.flop.values())
    if lanes := _lane_flop(counts, flop):
        return abs(lanes / (flop - tensor) - 1) / 0.1
    return abs(tensor / flop - 1) * 1e6


def predict_loop(loop: Loop, tiles: Tiles, architecture: Architecture) -> LoopPrediction | None:
    """Clocks of a tile in a loop; None if it is not one over tiles."""
    found = _match(loop, tiles)
    if found is None:
        return None
    kind, number, counts = found
    clocks = {pipe: value / number for pipe, value in pipe_clocks(counts, tiles.warps, architecture).items()}
    operands = counts.operand_bytes * tiles.warps / architecture.shared_bytes / number
    others = dict(clocks, tensor=0.0, shared=clocks["shared"] - operands)
    elements = number * tiles.elements / (WARP * tiles.warps)  # of one thread
    flop = sum(counts.flop.values()) + _lane_flop(counts, tiles.flop(kind) * number)
    of_a_thread = {"flop": flop / WARP, "exp2": counts.classes["exp2"], "fp32": counts.fp32, "issued": counts.issued}
    return LoopPrediction(
        name=kind.name,
        tiles_an_iteration=number,
        clocks=clocks,
        in_turns=max(clocks["tensor"], operands) + max(others.values()),
        per_element={name: value / elements for name, value in of_a_thread.items()},
    )


def _kinds(kernel: str, values: Mapping[str, Any]) -> list[TileLoop]:
    """Kinds of tiles by their work: those of peers of the same width, for instance, are alike."""
    out: dict[tuple[Any, ...], TileLoop] = {}
    for loop in tile_loops(kernel, values):
        key = (loop.widths, loop.exponentials)
        before = out.get(key)
        name = loop.name.split(", peer")[0]
        if before is not None:
            name = before.name if name in before.name else f"{before.name}, {name}"
        out[key] = loop._replace(name=name, tiles=loop.tiles + (before.tiles if before else 0))
    return list(out.values())


def predict(launch: Launch, target: str, case: KernelCase) -> Prediction:
    """Compile one recorded launch and predict it.

    Raises:
        ValueError: a target whose throughputs are not known.
    """
    if target not in ARCHITECTURES:
        raise ValueError(f"target must be one of {', '.join(ARCHITECTURES)}, got {target}")
    compiled = build(launch, target)
    code = machine_code.read(compiled.asm["cubin"])
    out = Prediction(
        target=target,
        case=case,
        kernel=launch.name,
        tile=launch.tile,
        warps=compiled.metadata.num_warps,
        registers=code.registers,
        stack=code.stack,
        programs=launch.programs,
        limiter="latency" if launch.programs == 1 else "memory",
    )
    if launch.name in PASSES:
        _predict_tiles(out, code, launch)
    else:
        out.bytes_moved = moved(launch)
    if case.loss == "augment":
        _predict_pixels(out, code, launch.values["BLOCK"])
    return out


def _predict_tiles(out: Prediction, code: Code, launch: Launch) -> None:
    """Fills in clocks: the mean over a kind's loops, times its tiles in the launch."""
    values, case, architecture = launch.values, out.case, ARCHITECTURES[out.target]
    tiles = Tiles(values["BLOCK_M"], values["BLOCK_N"], out.warps, _kinds(out.kernel, values))
    found = {loop.head: predict_loop(loop, tiles, architecture) for loop in hot_loops(loops(code.instructions))}
    out.loops = [each for each in found.values() if each is not None]
    alike = {kind: [loop for loop in out.loops if loop.name == kind.name] for kind in tiles.kinds}
    out.unmatched = [f"{head:#x}" for head, each in found.items() if each is None]
    out.unmatched += [kind.name for kind, each in alike.items() if not each]
    if out.unmatched:
        out.limiter = "unknown"
        return
    pipes = {
        pipe: sum(kind.tiles * fmean(loop.clocks[pipe] for loop in each) for kind, each in alike.items())
        for pipe in PIPES
    }
    out.limiter = max(pipes, key=lambda pipe: pipes[pipe])
    least = needed(shape_of(launch, case), (PASSES[launch.name],))
    products = least.flop / architecture.product_rate(OPERANDS[case.dtype])
    out.clocks_needed = max(products, least.exponentials / architecture.special_lanes) / case.N**2
    overlapped = {kind: fmean(loop.overlapped for loop in each) for kind, each in alike.items()}
    in_turns = {kind: fmean(loop.in_turns for loop in each) for kind, each in alike.items()}
    out.clocks_overlapped, out.clocks_in_turns = (
        sum(kind.tiles * clocks for kind, clocks in each.items()) / case.N**2 for each in (overlapped, in_turns)
    )
    out.busiest_overlapped, out.busiest_in_turns = (
        busiest(program_clocks(launch, each), MULTIPROCESSORS[out.target]) for each in (overlapped, in_turns)
    )


def program_clocks(launch: Launch, clocks: Mapping[TileLoop, float]) -> list[float]:
    """Of every program of a launch, in the order of its grid, if all its tiles take the clocks of their kind.

    Programs are alike, but for the statistics of NT-Xent and the KL together: a row block of view a has a tile of its
    own view for each peer, and one of both peers; one of view b has two for each peer.
    """
    values = launch.values
    kinds = {len(kind.widths): value for kind, value in clocks.items()}
    if launch.name != "statistics_kernel" or not (values["NT"] and values["KL"]):
        return [1.0] * launch.programs
    blocks_a = -(-values["rows_a"] // values["BLOCK_M"])
    in_a, in_b = 2 * kinds[1] + kinds[2], 4 * kinds[1]
    return [in_a if number % launch.grid[0] < blocks_a else in_b for number in range(launch.programs)]


def busiest(programs: Sequence[float], multiprocessors: int) -> float:
    """The part of all programs' clocks that the multiprocessor has that has most, if each, in order, goes to the one
    that is free first, and each has one at a time."""
    free = [0.0] * multiprocessors
    for clocks in programs:
        heapq.heapreplace(free, free[0] + clocks)
    return max(free) / sum(programs)


def _predict_pixels(out: Prediction, code: Code, block: int) -> None:
    """The augmentation has no loop that all of it is in: every instruction is counted once for a block of pixels, as if
    each view were jittered (each adjustment once) and blurred; the draws, once a program, are counted to its first
    block."""
    reached = [each for found in blocks(code.instructions).values() for each in found.instructions]
    clocks = pipe_clocks(count(reached), out.warps, ARCHITECTURES[out.target])
    out.limiter = max(clocks, key=lambda pipe: clocks[pipe])
    out.clocks_overlapped = clocks[out.limiter] / block


def predicted_seconds(kernel: KernelInfo, measured: KernelsInfo, static: Sequence[Prediction]) -> list[float]:
    """What is predicted of a measured kernel, all pipes busy at once and in turns, at the clock rate that the measured
    exponentials stand for, 16 a clock and multiprocessor; empty if the very same code is not known."""
    count, rates = measured.multiprocessors, measured.rates
    for each in static:
        same = (each.kernel, each.tile, each.warps) == (kernel.kernel, kernel.tile, kernel.warps)
        if rates and same and each.case == measured.case and count == MULTIPROCESSORS[each.target]:
            return each.seconds(rates.exp2 / (ARCHITECTURES[each.target].special_lanes * count))
    return []


# The report


def cases() -> Iterator[KernelCase]:
    """The whole loss in the entries of the configuration table, its parts at D = 128, and the views."""
    for D in (64, 128, 256, 1024):
        yield KernelCase("dogo_loss", "bfloat16", D, 4096, "static")
    for N in (256, 32768, 262144):
        yield KernelCase("dogo_loss", "bfloat16", 128, N, "static")
    for dtype in ("float16", "float32"):
        yield KernelCase("dogo_loss", dtype, 128, 4096, "static")
    for loss in ("nt_xent", "similarity_kl"):
        yield KernelCase(loss, "bfloat16", 128, 4096, "static")
    for size, recipe in ((32, "cifar"), (96, "simclr"), (224, "simclr")):
        yield KernelCase("augment", "bfloat16", size, 256, recipe)


def predict_case(case: KernelCase, target: str) -> tuple[list[Prediction], int]:
    """All kernels of a case for one target, and the bytes of their buffers; see ``buffer_bytes``."""
    recorded = launches(case, target)
    return [predict(launch, target, case) for launch in recorded], buffer_bytes(recorded)


LEGEND = """\
Static roofline: compiled, not run. Clocks are of one multiprocessor, counted from the machine code of a tile as it
usually goes and published throughputs; latencies, barriers, caches and memory are left out, so a measured kernel is
slower. No time here is measured.

Of each kernel: registers and spilled bytes a thread; how many programs; clocks for 1000 pairs of the N × N (views: for
1000 pixels, with everything a view can have): "bound", of the needed work on its own limiter (S symmetric, each cosine
once a pass), "overlapped", if all pipes were busy at the same time, and "in turns", if products took turns with
everything else; the percents of the bound are bound / clocks, the limiter the busiest pipe. Of each kind of tile, the
loop with the most clocks: FLOP, instructions and bytes an element, and clocks for 1000 elements by pipe (shared: the
least, as if the lanes of a load shared their addresses).
"""
KERNEL_HEAD = ["kernel", "tile", "registers", "spilled", "programs", "bound", "overlapped", "in turns", "% of bound"]
COUNTED = ("flop", "exp2", "fp32", "issued")


def text_of(predictions: Sequence[Prediction]) -> list[str]:
    """The tables of one case."""
    case = predictions[0].case
    title = f"{predictions[0].target}: {case.loss}, {case.variant}, {case.dtype}, D = {case.D}, N = {case.N}"
    tiles = [row for each in predictions for row in _loop_rows(each)]
    lines = [title, "", *table([*KERNEL_HEAD, "MB", "limiter"], map(_kernel_row, predictions)), ""]
    return lines + ([*table(["tile", *COUNTED, *PIPES], tiles), ""] if tiles else [])


def _kernel_row(found: Prediction) -> list[str]:
    clocks = (found.clocks_needed, found.clocks_overlapped, found.clocks_in_turns)
    return [
        found.kernel.removesuffix("_kernel"),
        f"{found.tile}, {found.warps} warps".removeprefix(", "),
        *map(str, (found.registers, found.stack, found.programs)),
        *(MISSING if each is None else f"{1000 * each:.1f}" for each in clocks),
        " to ".join(f"{100 * share:.0f}" for share in found.shares[::-1]) or MISSING,
        MISSING if found.bytes_moved is None else f"{found.bytes_moved / 1e6:.1f}",
        ", ".join([found.limiter, *(f"not matched: {each}" for each in found.unmatched)]),
    ]


def _loop_rows(found: Prediction) -> Iterator[list[str]]:
    rows, _, keys = found.tile.partition("x")
    for name in dict.fromkeys(loop.name for loop in found.loops):
        loop = max((loop for loop in found.loops if loop.name == name), key=lambda loop: loop.overlapped)
        counted = [f"{loop.per_element[what]:.2f}" for what in COUNTED]
        clocks = [f"{1000 * loop.clocks[pipe] / (int(rows) * int(keys)):.0f}" for pipe in PIPES]
        yield [f"{found.kernel.removesuffix('_kernel')}: {name}", *counted, *clocks]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.bench.reports.roofline")
    parser.add_argument("--target", default="sm_90", choices=list(ARCHITECTURES))
    parser.add_argument("--out", type=Path, help="also write PREFIX.json and PREFIX.txt", metavar="PREFIX")
    arguments = parser.parse_args()
    refuse_the_interpreter()
    report = Report(versions=compiler_versions())
    text = [LEGEND, ", ".join(f"{name} {value}" for name, value in report.versions.items()), ""]
    print("\n".join(text), flush=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for found, size in pool.map(predict_case, cases(), itertools.repeat(arguments.target)):
            report.predictions += found
            if found[0].case.loss != "augment":
                report.buffers.append(Buffers(case=found[0].case, bytes=size))
            text += (lines := text_of(found))
            print("\n".join(lines), flush=True)
    if arguments.out:
        for suffix, body in ((".json", report.model_dump_json(indent=1)), (".txt", "\n".join(text))):
            write_atomically(Path(f"{arguments.out}{suffix}"), (body + "\n").encode())


if __name__ == "__main__":
    main()

"""The static roofline: what limits every kernel, read from its machine code, without a GPU.

    python -m dogo_fast.bench.reports.roofline [--targets sm_90 ...] [--full] [--out PREFIX]

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
products need that are missing then. Products of float32 in full precision are FFMA and are matched within a tenth;
tcgen05 products (sm_100) do not say their shape: there an iteration is taken to have one tile with the FLOP it should,
matched by its exponentials alone, what the products read from shared memory is not counted, and rows of several chunks
are not matched.
"""

import argparse
import heapq
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dogo_fast.atomic import write_atomically
from dogo_fast.ops.compiling import MULTIPROCESSORS, Case, buffer_bytes, build
from dogo_fast.ops.launches import Launch
from dogo_fast.ops.library import LOSSES

from ..work import Shape, TileLoop, Work, needed, tile_loops
from . import compile_report
from .cases import launches
from .machine_code import WARP, Code, Counts, Instruction, Loop, blocks, count, hot_loops, loops, read

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
        registers, shared_memory (bytes), warps, programs: it holds at most.
    """

    products: Mapping[str, int]
    fp32_lanes: int
    integer_lanes: int = 64
    special_lanes: int = 16
    shared_bytes: int = 128
    issue: int = 4
    registers: int = 65536
    shared_memory: int = 228 * 1024
    warps: int = 64
    programs: int = 32

    def product_rate(self, dtype: str) -> int:
        """FLOP a clock of products; of float32 in full precision, on the ordinary lanes."""
        return 2 * self.fp32_lanes if dtype == "F32" else self.products[dtype]

    def rates(self, dtype: str, multiprocessors: int, clock: float) -> dict[str, float]:
        """What ``work.bound`` takes, as a ceiling for rates measured on a GPU at ``clock`` Hz: not a measurement."""
        scale = multiprocessors * clock
        return {"gemm": self.product_rate(dtype) * scale, "exp2": self.special_lanes * scale}


# Throughputs a clock and multiprocessor: CUDA C++ Programming Guide, "Arithmetic Instructions", table of native
# arithmetic instructions (lanes), and "Compute Capabilities" (registers, shared memory, warps, programs). Tensor cores:
# NVIDIA's A100 and H100 architecture papers (1024 and 2048 dense fp16 multiply-adds), and for sm_100 B200's published
# dense 2.25 PFLOP/s over 148 multiprocessors at 1.85 GHz. Shared memory: 32 banks of 4 bytes. Conversions share the
# special-function unit: Nsight Compute's documentation of the XU pipe. sm_100's integer lanes are taken to be sm_90's.
ARCHITECTURES = {
    "sm_80": Architecture({"BF16": 2048, "F16": 2048, "TF32": 1024}, fp32_lanes=64, shared_memory=164 * 1024),
    "sm_90": Architecture({"BF16": 4096, "F16": 4096, "TF32": 2048}, fp32_lanes=128),
    "sm_100": Architecture({"BF16": 8192, "F16": 8192, "TF32": 4096}, fp32_lanes=128),
}
OPERANDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
RESERVED_SHARED = 1024
"""Bytes of shared memory that the system takes of every program."""
REGISTER_UNIT = 256
"""Registers are given to a warp in units of so many."""
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


def programs_held(registers: int, shared: int, warps: int, architecture: Architecture) -> int:
    """Programs of a kernel that a multiprocessor holds at once: registers a thread, bytes of shared memory."""
    a_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        architecture.registers // (a_warp * warps),
        architecture.shared_memory // (shared + RESERVED_SHARED),
        architecture.warps // warps,
        architecture.programs,
    )


@dataclass
class LoopPrediction:
    """One loop over tiles. ``clocks``: of a multiprocessor for one tile, by pipe; ``per_element``: of the counts."""

    name: str
    address: int
    tiles_an_iteration: int
    clocks: dict[str, float]
    in_turns: float
    per_element: dict[str, float]
    spill_instructions: int

    @property
    def limiter(self) -> str:
        return max(self.clocks, key=lambda pipe: self.clocks[pipe])


@dataclass
class Prediction:
    """One kernel of one case. Clocks are of one multiprocessor for each of N² pairs of rows (a pixel of a view for the
    augmentation), None where the kernel has no tiles; ``share_*``: the bound as a part of them; ``busiest_*``: the part
    of the launch's clocks that the multiprocessor has that has most. ``bytes_moved``: of inputs read once and outputs
    written once, where that is what counts."""

    target: str
    case: Case
    kernel: str
    tile: str
    warps: int
    registers: int
    stack: int
    shared: int
    programs: int
    programs_held: int
    instructions: int
    loops: list[LoopPrediction] = field(default_factory=list)
    limiter: str = "memory"
    clocks_needed: float | None = None
    needed_limiter: str | None = None
    clocks_overlapped: float | None = None
    clocks_in_turns: float | None = None
    busiest_overlapped: float | None = None
    busiest_in_turns: float | None = None
    bytes_moved: int | None = None
    unmatched: list[str] = field(default_factory=list)

    @property
    def share_overlapped(self) -> float | None:
        return _share(self.clocks_needed, self.clocks_overlapped)

    @property
    def share_in_turns(self) -> float | None:
        return _share(self.clocks_needed, self.clocks_in_turns)


def _share(least: float | None, taken: float | None) -> float | None:
    return None if least is None or taken is None else least / taken


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
    shapeless = count(own).classes["product"] > 0 and not count(own).flop
    if shapeless and inner:
        return None
    best: tuple[float, TileLoop, int, Counts] | None = None
    for kind in tiles.kinds:
        counts = count(own)
        for each, trips in zip(inner, _trips(own, inner, kind, tiles), strict=True):
            counts.add(count(each.path()[0]), trips)
        for number in (1,) if shapeless else range(1, MOST_TILES + 1):
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
    if counts.classes["product"] and not tensor:
        return 0.0
    if lanes := _lane_flop(counts, flop):
        return abs(lanes / (flop - tensor) - 1) / 0.1
    return abs(tensor / flop - 1) * 1e6


def predict_loop(loop: Loop, tiles: Tiles, architecture: Architecture, dtype: str) -> LoopPrediction | None:
    """Clocks of a tile in a loop; None if it is not one over tiles."""
    found = _match(loop, tiles)
    if found is None:
        return None
    kind, number, counts = found
    if counts.classes["product"] and not counts.flop:
        counts.flop[OPERANDS[dtype]] = round(tiles.flop(kind) * number)
    clocks = {pipe: value / number for pipe, value in pipe_clocks(counts, tiles.warps, architecture).items()}
    operands = counts.operand_bytes * tiles.warps / architecture.shared_bytes / number
    others = dict(clocks, tensor=0.0, shared=clocks["shared"] - operands)
    elements = number * tiles.elements / (WARP * tiles.warps)  # of one thread
    per_element = {
        "flop": (sum(counts.flop.values()) + _lane_flop(counts, tiles.flop(kind) * number)) / (elements * WARP),
        "shared_bytes": counts.shared_bytes / (elements * WARP),
        "global_bytes": counts.global_bytes / (elements * WARP),
        "fp32": counts.fp32 / elements,
        "issued": counts.issued / elements,
    } | {name: counts.classes[name] / elements for name in ("exp2", "integer", "packing", "multiply", "uniform")}
    in_turns = max(clocks["tensor"], operands) + max(others.values())
    return LoopPrediction(kind.name, loop.head, number, clocks, in_turns, per_element, counts.classes["local"])


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


def predict(launch: Launch, target: str, case: Case) -> Prediction:
    """Compile one recorded launch and predict it.

    Raises:
        ValueError: a target whose throughputs are not known.
    """
    if target not in ARCHITECTURES:
        raise ValueError(f"target must be one of {', '.join(ARCHITECTURES)}, got {target}")
    architecture = ARCHITECTURES[target]
    compiled = build(launch, target)
    code = read(compiled.asm["cubin"])
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    out = Prediction(
        target, case, launch.kernel.__name__, launch.tile, warps, code.registers, code.stack, shared,
        programs=int(torch.Size(launch.grid).numel()),
        programs_held=programs_held(code.registers, shared, warps, architecture),
        instructions=len(code.instructions),
    )  # fmt: skip
    if "BLOCK_M" in launch.values:
        _predict_tiles(out, code, launch, architecture)
    elif case.loss == "augment":
        _predict_pixels(out, code, launch, architecture)
    elif out.kernel == "normalize_kernel":
        out.bytes_moved = _normalize_bytes(launch.values)
    else:
        out.limiter = "latency"  # one program
    return out


def _predict_tiles(out: Prediction, code: Code, launch: Launch, architecture: Architecture) -> None:
    """Fills in clocks: the mean over a kind's loops, times its tiles in the launch."""
    values, case = launch.values, out.case
    tiles = Tiles(values["BLOCK_M"], values["BLOCK_N"], out.warps, _kinds(out.kernel, values))
    for loop in hot_loops(loops(code.instructions)):
        predicted = predict_loop(loop, tiles, architecture, case.dtype)
        if predicted is None:
            out.unmatched.append(f"{loop.head:#x}")
        else:
            out.loops.append(predicted)
    pipes = dict.fromkeys(PIPES, 0.0)
    overlapped: dict[TileLoop, float] = {}
    in_turns: dict[TileLoop, float] = {}
    for kind in tiles.kinds:
        alike = [loop for loop in out.loops if loop.name == kind.name]
        if not alike:
            out.unmatched.append(kind.name)
            continue
        overlapped[kind] = fmean(max(loop.clocks.values()) for loop in alike)
        in_turns[kind] = fmean(loop.in_turns for loop in alike)
        for pipe in PIPES:
            pipes[pipe] += kind.tiles * fmean(loop.clocks[pipe] for loop in alike)
    if out.unmatched:
        out.limiter = "unknown"
        return
    out.limiter = max(pipes, key=lambda pipe: pipes[pipe])
    out.clocks_overlapped, out.clocks_in_turns = (
        sum(kind.tiles * clocks for kind, clocks in each.items()) / case.N**2 for each in (overlapped, in_turns)
    )
    out.busiest_overlapped, out.busiest_in_turns = (
        busiest(program_clocks(launch, each), MULTIPROCESSORS[out.target]) for each in (overlapped, in_turns)
    )
    least = _needed(case, out.kernel, values)
    clocks = {
        "tensor" if case.dtype != "float32" else "fp32": least.flop / architecture.product_rate(OPERANDS[case.dtype]),
        "special": least.exponentials / architecture.special_lanes,
    }
    out.needed_limiter = max(clocks, key=lambda pipe: clocks[pipe])
    out.clocks_needed = clocks[out.needed_limiter] / case.N**2


def program_clocks(launch: Launch, clocks: Mapping[TileLoop, float]) -> list[float]:
    """Of every program of a launch, in the order of its grid, if all its tiles take the clocks of their kind.

    Programs are alike, but for the statistics of NT-Xent and the KL together: a row block of view a has a tile of its
    own view for each peer, and one of both peers; one of view b has two for each peer.
    """
    values, programs = launch.values, int(torch.Size(launch.grid).numel())
    kinds = {len(kind.widths): value for kind, value in clocks.items()}
    if launch.kernel.__name__ != "statistics_kernel" or not (values["NT"] and values["KL"]):
        return [1.0] * programs
    blocks_a = -(-values["rows_a"] // values["BLOCK_M"])
    in_a, in_b = 2 * kinds[1] + kinds[2], 4 * kinds[1]
    return [in_a if number % launch.grid[0] < blocks_a else in_b for number in range(programs)]


def busiest(programs: Sequence[float], multiprocessors: int) -> float:
    """The part of all programs' clocks that the multiprocessor has that has most, if each, in order, goes to the one
    that is free first, and each has one at a time."""
    free = [0.0] * multiprocessors
    for clocks in programs:
        heapq.heapreplace(free, free[0] + clocks)
    return max(free) / sum(programs)


def _needed(case: Case, kernel: str, values: Mapping[str, Any]) -> Work:
    peers = 1 if case.loss == "nt_xent" else 2
    teacher = case.loss == "similarity_kl" and values.get("PEER_2") == "teacher"
    shape = Shape(case.loss, case.N, (case.D,) * peers, getattr(torch, case.dtype).itemsize, teacher_learns=teacher)
    return needed(shape, ("forward" if kernel == "statistics_kernel" else "backward",))


def _predict_pixels(out: Prediction, code: Code, launch: Launch, architecture: Architecture) -> None:
    """The augmentation has no loop that all of it is in: every instruction is counted once for BLOCK pixels, as if
    each view were jittered (each adjustment once) and blurred; the draws, once a program, are counted to its first
    BLOCK pixels."""
    values = launch.values
    reached = [each for block in blocks(code.instructions).values() for each in block.instructions]
    clocks = pipe_clocks(count(reached), out.warps, architecture)
    out.limiter = max(clocks, key=lambda pipe: clocks[pipe])
    out.clocks_overlapped = clocks[out.limiter] / values["BLOCK"]
    pixels = values["OUT_HEIGHT"] * values["OUT_WIDTH"]
    itemsize = getattr(torch, out.case.dtype).itemsize
    out.bytes_moved = out.programs * 3 * (values["HEIGHT"] * values["WIDTH"] + pixels * itemsize)


def _normalize_bytes(values: Mapping[str, Any]) -> int:
    """Views read once, padded rows and inverse norms written once."""
    out = 0
    for peer in range(1, values["PEERS"] + 1):
        for view in "ab":
            out += values[f"rows_{view}"] * values[f"D_{peer}"] * values[f"p_{view}_{peer}"].dtype.itemsize
        pad = values["pad_a"] + values["pad_b"]
        out += pad * (values[f"WIDTH_{peer}"] * values[f"p_z_{peer}"].dtype.itemsize + 4)
    return out


# The report


def cases(full: bool) -> Iterator[Case]:
    """The whole loss in the entries of the configuration table, its parts at D = 128, and the views."""
    for D in (64, 128, 256, 1024):
        yield Case("dogo_loss", "bfloat16", D, 4096, "static")
    for N in (256, 32768, 262144):
        yield Case("dogo_loss", "bfloat16", 128, N, "static")
    for dtype in ("float16", "float32"):
        yield Case("dogo_loss", dtype, 128, 4096, "static")
    yield Case("nt_xent", "bfloat16", 128, 4096, "static")
    yield Case("similarity_kl", "bfloat16", 128, 4096, "static")
    for size, recipe in ((32, "cifar"), (96, "simclr"), (224, "simclr")):
        yield Case("augment", "bfloat16", size, 256, recipe)
    if full:
        for D in (64, 256, 1024):
            yield Case("dogo_loss", "bfloat16", D, 256, "static")
        yield Case("dogo_loss", "float32", 128, 256, "static")
        for loss in LOSSES:
            yield Case(loss, "bfloat16", 128, 4096, "online")


def predict_case(case: Case, target: str) -> tuple[list[Prediction], int]:
    """All kernels of a case for one target, and the bytes of their buffers; see ``buffer_bytes``."""
    recorded = launches(case, target)
    return [predict(launch, target, case) for launch in recorded], buffer_bytes(recorded)


def seconds(prediction: Mapping[str, Any], clock: float) -> tuple[float, float] | None:
    """What a recorded prediction says of a kernel of tiles at ``clock`` Hz: all pipes busy at once, and in turns; of
    the busiest multiprocessor. None where the kernel has no tiles."""
    if prediction["busiest_in_turns"] is None:
        return None
    pairs = prediction["case"]["N"] ** 2
    overlapped = pairs * prediction["clocks_overlapped"] * prediction["busiest_overlapped"]
    return overlapped / clock, pairs * prediction["clocks_in_turns"] * prediction["busiest_in_turns"] / clock


LEGEND = """\
Static roofline: compiled, not run. Clocks are of one multiprocessor, counted from the machine code of a tile as it
usually goes and published throughputs; latencies, barriers, caches and memory are left out, so a measured kernel is
slower. No time here is measured.

bound       clocks the needed work takes on its own limiter (S symmetric, each cosine once a pass)
overlapped  clocks if all pipes of the multiprocessor were busy at the same time; limiter: the busiest pipe
in turns    clocks if products took turns with everything else
%           bound / clocks: the most of the bound that can be reached
held        programs a multiprocessor holds; programs: in the launch
Clocks are for 1000 pairs of the N × N (views: for 1000 pixels, with everything a view can have). Under a kernel, for
each kind of tile: FLOP, exponentials, float32, integer, packing, uniform and all instructions an element; bytes through
shared memory and from global memory an element; clocks for 1000 elements by pipe (shared: the least, as if the lanes of
a load shared their addresses); spill: loads and stores of local memory an iteration.
"""
HEADER = (
    f"{'target':7}{'loss':14}{'dtype':9}{'D':>5}{'N':>7}{'variant':>8}  {'kernel':18}{'tile':>7}{'warps':>6}{'regs':>5}"
    f"{'stack':>6}{'held':>5}{'programs':>9}{'bound':>9}{'overlapped':>11}{'in turns':>9}{'%':>6}{'%':>6}  limiter"
)


def _number(value: float | None, width: int, scale: float = 1000.0, digits: int = 1) -> str:
    return f"{'-':>{width}}" if value is None else f"{scale * value:>{width}.{digits}f}"


def lines(prediction: Prediction) -> list[str]:
    """A line a kernel, and under it a line for each kind of tile: the loop with the most clocks."""
    p = prediction
    loss, dtype, D, N, variant = p.case
    limiter = p.limiter + (f" (the bound: {p.needed_limiter})" if p.needed_limiter else "")
    if p.bytes_moved is not None:
        limiter += f"; {p.bytes_moved / 1e6:.1f} MB if each input is read and each output written once"
    if p.unmatched:
        limiter += "; not matched: " + ", ".join(p.unmatched)
    out = [
        f"{p.target:7}{loss:14}{dtype:9}{D:>5}{N:>7}{variant:>8}  {p.kernel.removesuffix('_kernel'):18}{p.tile:>7}"
        f"{p.warps:>6}{p.registers:>5}{p.stack:>6}{p.programs_held:>5}{p.programs:>9}{_number(p.clocks_needed, 9)}"
        f"{_number(p.clocks_overlapped, 11)}{_number(p.clocks_in_turns, 9)}{_number(p.share_overlapped, 6, 100, 0)}"
        f"{_number(p.share_in_turns, 6, 100, 0)}  {limiter}"
    ]
    elements = _elements(p.tile)
    for name in dict.fromkeys(loop.name for loop in p.loops):
        alike = [loop for loop in p.loops if loop.name == name]
        worst = max(alike, key=lambda loop: max(loop.clocks.values()))
        each = worst.per_element
        clocks = ", ".join(f"{pipe} {1000 * worst.clocks[pipe] / elements:.0f}" for pipe in PIPES)
        out.append(
            f"       {name} ({len(alike)} loops): {each['flop']:.0f} FLOP, {each['exp2']:.2f} exp, {each['fp32']:.1f} "
            f"fp32, {each['integer']:.1f} integer, {each['packing']:.1f} packing, {each['uniform']:.1f} uniform, "
            f"{each['issued']:.1f} all; {each['shared_bytes']:.1f} B shared, {each['global_bytes']:.1f} B global; "
            f"clocks: {clocks}; limiter {worst.limiter}; spill {worst.spill_instructions}"
        )
    return out


def whole_loss(predictions: list[Prediction]) -> str | None:
    """A line with the sum over a case's kernels of tiles; None where there is none."""
    tiled = [each for each in predictions if each.loops]
    if not tiled or any(each.clocks_overlapped is None for each in tiled):
        return None
    least, overlapped, in_turns = (
        sum(getattr(each, name) for each in tiled) for name in ("clocks_needed", "clocks_overlapped", "clocks_in_turns")
    )
    return (
        f"       both kernels: bound {1000 * least:.0f}, overlapped {1000 * overlapped:.0f} "
        f"({100 * least / overlapped:.0f} %), in turns {1000 * in_turns:.0f} ({100 * least / in_turns:.0f} %)"
    )


def _elements(tile: str) -> int:
    rows, _, keys = tile.partition("x")
    return int(rows or 1) * int(keys or 1)


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Everything, with the case by name."""
    shares = {"share_overlapped": prediction.share_overlapped, "share_in_turns": prediction.share_in_turns}
    case = prediction.case._asdict()
    loops = [asdict(loop) | {"limiter": loop.limiter} for loop in prediction.loops]
    return asdict(prediction) | {"case": case, "loops": loops} | shares


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dogo_fast.bench.reports.roofline", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--targets", nargs="+", default=["sm_90"], choices=list(ARCHITECTURES))
    parser.add_argument("--full", action="store_true", help="more sizes and dtypes, and running maxima")
    parser.add_argument("--out", type=Path, help="also write PREFIX.json and PREFIX.txt", metavar="PREFIX")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("the kernels cannot be compiled while TRITON_INTERPRET=1 is set: unset it")
    made_by = compile_report.versions()
    text = [LEGEND, ", ".join(f"{name} {value}" for name, value in made_by.items()), "", HEADER]
    print("\n".join(text), flush=True)
    predictions: list[Prediction] = []
    buffers: list[dict[str, Any]] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        wanted = [(case, target) for target in arguments.targets for case in cases(arguments.full)]
        jobs = [pool.submit(predict_case, *each) for each in wanted]
        for (case, target), job in zip(wanted, jobs, strict=True):
            done, size = job.result()
            predictions += done
            buffers += [] if case.loss == "augment" else [{"target": target, "case": case._asdict(), "bytes": size}]
            new = [line for prediction in done for line in lines(prediction)]
            new += [line for line in [whole_loss(done)] if line is not None]
            text += new
            print("\n".join(new), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "versions": made_by,
            "predictions": [as_json(each) for each in predictions],
            "buffers": buffers,
        }
        for suffix, body in ((".json", json.dumps(content, indent=1)), (".txt", "\n".join(text))):
            write_atomically(arguments.out.with_name(arguments.out.name + suffix), (body + "\n").encode())


if __name__ == "__main__":
    main()

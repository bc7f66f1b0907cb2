"""Clocks of a tile: the loops of the machine code matched with the tiles of a launch, and clocks of each pipe.

Tiles an iteration: the counted FLOP of an iteration, divided by those of a tile (work.py.tile_loops), must be a
whole number, and its exponentials must agree. A loop within an iteration (rows of several chunks) runs as often as the
products need that are missing then. Products of float32 in full precision are FFMA and are matched within a tenth.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..work import TileLoop, tile_loops
from .machine_code import WARP, Counts, Instruction, Loop, count

MOST_TILES = 8
"""Tiles that an iteration may have after unrolling."""


# What a multiprocessor of sm_90 does in a clock. Lanes: CUDA C++ Programming Guide, "Arithmetic Instructions", table of
# native arithmetic instructions. Tensor cores, FLOP without sparsity by operand type: NVIDIA's H100 architecture paper
# (2048 dense fp16 multiply-adds). Shared memory: 32 banks of 4 bytes. Conversions share the special-function unit:
# Nsight Compute's documentation of the XU pipe.
FP32_LANES = 128
INTEGER_LANES = 64
"""Additions, logic, comparisons, minima, selections; integer multiply-adds as well."""
SPECIAL_LANES = 16
"""Exponentials, reciprocals, and conversions between integers and floats."""
SHARED_BYTES = 128
ISSUED = 4
"""Instructions of a warp."""
PRODUCTS = {"BF16": 4096, "F16": 4096, "TF32": 2048, "F32": 2 * FP32_LANES}
"""Of float32 in full precision, on the ordinary lanes."""
OPERANDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
PIPES = ("tensor", "special", "fp32", "integer", "issue", "shared")


def pipe_clocks(counts: Counts, warps: int) -> dict[str, float]:
    """Clocks for which each pipe of a multiprocessor is busy with the counts of each of a program's warps."""
    lanes, classes = WARP * warps, counts.classes
    multiply = classes["multiply"] * lanes
    special = classes["exp2"] + classes["special"] + classes["conversion"]
    return {
        "tensor": sum(flop * warps / PRODUCTS[dtype] for dtype, flop in counts.flop.items()),
        "special": special * lanes / SPECIAL_LANES,
        # integer multiply-adds run on these lanes too, at the integers' rate
        "fp32": max((counts.fp32 * lanes + multiply) / FP32_LANES, multiply / INTEGER_LANES),
        "integer": (classes["integer"] + classes["packing"]) * lanes / INTEGER_LANES,
        "issue": counts.issued * warps / ISSUED,
        "shared": (counts.bank_bytes * warps + 4 * classes["shuffle"] * lanes) / SHARED_BYTES,
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


@dataclass(frozen=True)
class Tiles:
    """What a kernel's loops are matched against: the launch's kinds of tiles, and how a program sees one."""

    rows: int
    keys: int
    warps: int
    kinds: list[TileLoop]

    def elements(self, kind: TileLoop) -> int:
        return (kind.rows or self.rows) * self.keys

    def flop(self, kind: TileLoop) -> float:
        """Of one warp for one tile."""
        return 2 * self.elements(kind) * sum(kind.widths) / self.warps


def _trips(own: list[Instruction], inner: list[Loop], kind: TileLoop, tiles: Tiles) -> list[int]:
    """How often each loop over chunks of columns runs in a tile: as often as a product has chunks, less the chunks
    that were peeled off into the tile's own code, seen by the same product instructions. Loops that look alike share
    what was peeled off evenly."""
    whole = 2 * tiles.elements(kind) * max(kind.widths) / tiles.warps
    paths = [each.path()[0] for each in inner]
    outside, *signatures = (Counter(each.opcode for each in path if each.kind == "product") for path in (own, *paths))
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
        chunks = outside[opcode] // signature[opcode]
        out.append(round(whole / flop) - (chunks + alike - 1 - before) // alike)
    return out


def _match(loop: Loop, tiles: Tiles) -> tuple[TileLoop, int, Counts] | None:
    """(kind of tile, tiles an iteration, counts of an iteration) of a loop; None if it is none of the kinds."""
    own, inner = loop.path()
    best: tuple[tuple[float, int], TileLoop, int, Counts] | None = None
    for kind in tiles.kinds:
        repeated = zip(inner, _trips(own, inner, kind, tiles), strict=True)
        counts = count([*own, *(each for loop, trips in repeated for each in loop.path()[0] * trips)])
        for number in range(1, MOST_TILES + 1):
            off = _product_mismatch(counts, tiles.flop(kind) * number)
            wanted = kind.exponentials * number * tiles.elements(kind) / (WARP * tiles.warps)
            off_exponentials = abs(counts.classes["exp2"] / wanted - 1)
            rank = off + off_exponentials, number  # of tiles of two sizes that fit alike, the one that is there
            if off <= 1 and off_exponentials <= 0.25 and (best is None or rank < best[0]):
                best = rank, kind, number, counts
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


def predict_loop(loop: Loop, tiles: Tiles) -> LoopPrediction | None:
    """Clocks of a tile in a loop; None if it is not one over tiles."""
    found = _match(loop, tiles)
    if found is None:
        return None
    kind, number, counts = found
    clocks = {pipe: value / number for pipe, value in pipe_clocks(counts, tiles.warps).items()}
    operands = counts.operand_bytes * tiles.warps / SHARED_BYTES / number
    others = dict(clocks, tensor=0.0, shared=clocks["shared"] - operands)
    elements = number * tiles.elements(kind) / (WARP * tiles.warps)  # of one thread
    flop = sum(counts.flop.values()) + _lane_flop(counts, tiles.flop(kind) * number)
    of_a_thread = {"flop": flop / WARP, "exp2": counts.classes["exp2"], "fp32": counts.fp32, "issued": counts.issued}
    return LoopPrediction(
        name=kind.name,
        tiles_an_iteration=number,
        clocks=clocks,
        in_turns=max(clocks["tensor"], operands) + max(others.values()),
        per_element={name: value / elements for name, value in of_a_thread.items()},
    )


def kinds_of_tiles(kernel: str, values: Mapping[str, Any]) -> list[TileLoop]:
    """Kinds of tiles by their work: those of peers of the same width, for instance, are alike."""
    out: dict[tuple[Any, ...], TileLoop] = {}
    for loop in tile_loops(kernel, values):
        key = (loop.widths, loop.exponentials, loop.rows)
        before = out.get(key)
        name = loop.name.split(", peer")[0]
        if before is not None:
            name = before.name if name in before.name else f"{before.name}, {name}"
        out[key] = loop._replace(name=name, tiles=loop.tiles + (before.tiles if before else 0))
    return list(out.values())

"""The static roofline: what limits every kernel, read from its machine code, without a GPU.

    python -m dogo_fast.bench.reports.roofline [--out FILE]

Each kernel is compiled for sm_90, the loops over its tiles are found in the machine code, and the instructions of one
iteration are counted (tile_clocks.py). The architecture's published throughputs turn the counts into clocks of one
multiprocessor, pipe by pipe; the pipe that takes most is the limiter. Beside it stands the bound of the work that the
loss needs (work.py) on the same multiprocessor. The report is JSON; the page has a table of it.

These are clocks, not times: latencies, waits at barriers, the caches, bank conflicts, instruction fetch and the
device's memory are left out, so a measured kernel is slower. Two figures enclose what the counted instructions allow:
all pipes busy at the same time ("overlapped"), and products taking turns with everything else ("in turns"), as they do
within a warp, which waits for each product before it uses it.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel

from dogo_fast.atomic import write_atomically
from dogo_fast.measuring import compiler_versions
from dogo_fast.ops.compiling import KernelCase, buffer_bytes, build
from dogo_fast.ops.launches import Launch

from ..per_kernel import PASSES, shape_of
from ..records import read
from ..work import TileLoop, needed
from . import machine_code
from .cases import launches
from .compile_report import refuse_the_interpreter
from .machine_code import hot_loops, loops
from .tile_clocks import (
    OPERANDS,
    PIPES,
    PRODUCTS,
    SPECIAL_LANES,
    LoopPrediction,
    Tiles,
    kinds_of_tiles,
    predict_loop,
)

TARGET = "sm_90"


class Prediction(BaseModel):
    """One kernel of one case. Clocks are of one multiprocessor for each of N² pairs of rows, None where a loop was not
    matched."""

    case: KernelCase
    kernel: str
    tile: str
    warps: int
    registers: int
    stack: int
    serialised: bool = False
    loops: list[LoopPrediction] = []
    limiter: str = "unknown"
    clocks_needed: float | None = None
    clocks_overlapped: float | None = None
    clocks_in_turns: float | None = None
    unmatched: list[str] = []

    @property
    def shares(self) -> list[float]:
        """The bound as a part of the clocks, overlapped and in turns; empty where there are none."""
        if self.clocks_needed is None or self.clocks_overlapped is None or self.clocks_in_turns is None:
            return []
        return [self.clocks_needed / self.clocks_overlapped, self.clocks_needed / self.clocks_in_turns]


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


def predict(launch: Launch, case: KernelCase) -> Prediction:
    """Compile one recorded launch of a kernel of tiles and predict it: the mean over a kind's loops, times its tiles in
    the launch."""
    compiled = build(launch, TARGET)
    code, warps, values = machine_code.read(compiled.asm["cubin"]), compiled.metadata.num_warps, launch.values
    tiles = Tiles(values["BLOCK_M"], values["BLOCK_N"], warps, kinds_of_tiles(launch.name, values))
    found = {loop.head: predict_loop(loop, tiles) for loop in hot_loops(loops(code.instructions))}
    matched = [each for each in found.values() if each is not None]
    alike = {kind: [loop for loop in matched if loop.name == kind.name] for kind in tiles.kinds}
    unmatched = [f"{head:#x}" for head, each in found.items() if each is None]
    out = Prediction(
        case=case,
        kernel=launch.name,
        tile=launch.tile,
        warps=warps,
        registers=code.registers,
        stack=code.stack,
        serialised=code.serialised,
        loops=matched,
        unmatched=unmatched + [kind.name for kind, each in alike.items() if not each],
    )
    if not out.unmatched:
        _add_clocks(out, launch, alike)
    return out


def _add_clocks(out: Prediction, launch: Launch, alike: Mapping[TileLoop, Sequence[LoopPrediction]]) -> None:
    """``alike``: the loops of each kind of tile."""
    case = out.case
    pipes = {
        pipe: sum(kind.tiles * fmean(loop.clocks[pipe] for loop in each) for kind, each in alike.items())
        for pipe in PIPES
    }
    out.limiter = max(pipes, key=lambda pipe: pipes[pipe])
    least = needed(shape_of(launch, case), (PASSES[launch.name],))
    products = least.flop / PRODUCTS[OPERANDS[case.dtype]]
    out.clocks_needed = max(products, least.exponentials / SPECIAL_LANES) / case.N**2
    overlapped = {kind: fmean(loop.overlapped for loop in each) for kind, each in alike.items()}
    in_turns = {kind: fmean(loop.in_turns for loop in each) for kind, each in alike.items()}
    out.clocks_overlapped, out.clocks_in_turns = (
        sum(kind.tiles * clocks for kind, clocks in each.items()) / case.N**2 for each in (overlapped, in_turns)
    )


# The report


def cases() -> Iterator[KernelCase]:
    """The whole loss in the entries of the configuration table, and its parts at D = 128."""
    for D in (64, 128, 256, 1024):
        yield KernelCase("dogo_loss", "bfloat16", D, 4096, "static")
    for N in (256, 32768, 262144):
        yield KernelCase("dogo_loss", "bfloat16", 128, N, "static")
    for dtype in ("float16", "float32"):
        yield KernelCase("dogo_loss", dtype, 128, 4096, "static")
    for loss in ("nt_xent", "similarity_kl"):
        yield KernelCase(loss, "bfloat16", 128, 4096, "static")


def predict_case(case: KernelCase) -> tuple[list[Prediction], Buffers]:
    """The kernels of tiles in a case, and the bytes of all its buffers."""
    recorded = launches(case, TARGET)
    predictions = [predict(launch, case) for launch in recorded if launch.name in PASSES]
    return predictions, Buffers(case=case, bytes=buffer_bytes(recorded))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.bench.reports.roofline")
    parser.add_argument("--out", type=Path, help="write the report there instead of to the terminal", metavar="FILE")
    out = parser.parse_args().out
    refuse_the_interpreter()
    report = Report(versions=compiler_versions())
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for found, buffers in pool.map(predict_case, cases()):
            report.predictions += found
            report.buffers.append(buffers)
            print(buffers.case, file=sys.stderr)
    text = report.model_dump_json(indent=1) + "\n"
    if out:
        write_atomically(out, text.encode())
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

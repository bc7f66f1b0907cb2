"""Compiling one kernel with one tile, for any NVIDIA target and without a GPU; and the search that needs no more."""

import concurrent.futures.process
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dogo_fast.kernels.configurations import Configuration, Tile
from dogo_fast.ops.compiling import KernelCase, build, launches, resources
from dogo_fast.tuning.search import OTHERS, TIMED, Outcome, TunedSize, all_tiles

SHARED_LIMITS = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_87": 163,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_103": 227,
    "sm_120": 99,
    "sm_121": 99,
}
"""KiB of shared memory that a program may have; CUDA C++ Programming Guide, compute capabilities."""
STATIC_TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")


def compile_tile(case: KernelCase, target: str, kernel: str, tile: Tile, multiprocessors: int | None = None) -> Outcome:
    """Compile the statistics or the gradient kernel of a case with a tile; whatever goes wrong is in the outcome.

    ``multiprocessors``: of the GPU that will run it, whose launch then finds the very same code in Triton's cache.
    """
    try:
        recorded = launches(case, target, Configuration(tile, tile), multiprocessors)
        (wanted,) = (each for each in recorded if each.name == f"{kernel}_kernel")
        compiled = build(wanted, target)
        registers, spilled = resources(compiled.asm["cubin"])
    except Exception as error:  # Triton's, LLVM's or ptxas's: a tile that no compiler takes is no candidate
        said = (str(error).strip().splitlines() or [""])[0]
        return Outcome(failure=f"does not compile: {type(error).__name__} {said}")
    return Outcome(compiled.metadata.shared, registers, spilled)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Compilers:
    """A pool of processes that compile for one target; ``tuning.search.Compile``.

    They are started afresh, not forked: the parent may hold a CUDA context.
    """

    def __init__(self, target: str, multiprocessors: int) -> None:
        self.target = target
        self.multiprocessors = multiprocessors
        self.pool = _new_pool()

    def __call__(self, size: TunedSize, kernel: str, tiles: Sequence[Tile], what: tuple[str, str]) -> list[Outcome]:
        loss, variant = what
        case = KernelCase(loss, size.dtype, size.columns, size.rows, variant)
        outcomes = self._compile(case, kernel, tiles)
        for place, tile in enumerate(tiles):
            if outcomes[place] is DIED:  # with another's process, perhaps
                (outcomes[place],) = self._compile(case, kernel, [tile])
        return outcomes

    def _compile(self, case: KernelCase, kernel: str, tiles: Sequence[Tile]) -> list[Outcome]:
        """DIED for those that were not finished when a process died: its whole pool ends with it."""
        try:
            jobs = [
                self.pool.submit(compile_tile, case, self.target, kernel, tile, self.multiprocessors) for tile in tiles
            ]
            outcomes = [_result(job) for job in jobs]
        except concurrent.futures.process.BrokenProcessPool:  # while the others were still being submitted
            outcomes = [DIED] * len(tiles)
        if DIED in outcomes:
            self.close()
            self.pool = _new_pool()
        return outcomes

    def close(self) -> None:
        """Let what is running end, and start no more."""
        self.pool.shutdown(wait=False, cancel_futures=True)


DIED = Outcome(failure="the compiler's process died")


def _new_pool() -> concurrent.futures.process.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context, initializer=_ignore_interrupts)


def _result(job: "concurrent.futures.Future[Outcome]") -> Outcome:
    try:
        return job.result()
    except concurrent.futures.process.BrokenProcessPool:
        return DIED


class Line(NamedTuple):
    """One line of the static search."""

    target: str
    size: TunedSize
    what: tuple[str, str]
    kernel: str
    tile: Tile
    outcome: Outcome

    def __str__(self) -> str:
        dtype, columns, _ = self.size
        loss, variant = self.what
        shared, registers, spilled, failure = self.outcome
        numbers = f"{registers!s:>6}{spilled!s:>7}{shared:>8}" if not failure else f"  {failure}"
        tile = f"{self.tile.rows}x{self.tile.keys}"
        return (
            f"{self.target:8}{dtype:10}{columns:>5}  {loss:15}{variant:8}{self.kernel:12}{tile:>9}"
            f"{self.tile.num_warps:>6}{self.tile.num_stages:>7}{numbers}"
        )


HEADER = (
    f"{'target':8}{'dtype':10}{'D':>5}  {'loss':15}{'variant':8}{'kernel':12}{'tile':>9}{'warps':>6}{'stages':>7}"
    f"{'regs':>6}{'spill':>7}{'shared':>8}"
)


def static_search(
    size: TunedSize,
    kernel: str,
    targets: Sequence[str],
    report: Callable[[Line], None],
    tiles: Iterator[Tile] | None = None,
    compile_one: Callable[[KernelCase, str, str, Tile], Outcome] = compile_tile,
) -> Tile | None:
    """The largest tile that no target spills with, in any of the losses and variants, and that fits the least shared
    memory among them; None where there is none.

    Args:
        size: dtype and columns; the number of rows decides only in how many parts the keys are cut.
        kernel: "statistics" or "gradient".
        targets: as "sm_90".
        report: called with every line there is to print.
        tiles: in the order in which they are tried; default: all, the largest first.
        compile_one: replaced in tests.
    """
    for tile in all_tiles() if tiles is None else tiles:
        if all(_fits(size, kernel, target, tile, report, compile_one) for target in targets):
            return tile
    return None


def _fits(
    size: TunedSize,
    kernel: str,
    target: str,
    tile: Tile,
    report: Callable[[Line], None],
    compile_one: Callable[[KernelCase, str, str, Tile], Outcome],
) -> bool:
    for what in (TIMED, *OTHERS):
        case = KernelCase(what[0], size.dtype, size.columns, size.rows, what[1])
        outcome = compile_one(case, target, kernel, tile)
        report(Line(target, size, what, kernel, tile, outcome))
        if outcome.rejection(1024 * SHARED_LIMITS[target]):
            return False
    return True

"""Which tiles to try, and which to take: pure Python over a way to compile and a way to time, both given."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from dogo_fast.kernels import configurations
from dogo_fast.kernels.configurations import Configuration, Key, Tile

KERNELS = Configuration._fields
TIMED = ("dogo_loss", "static")
"""The loss and variant (see ops.compiling.KernelCase) whose time decides."""
OTHERS = (("dogo_loss", "learnt"), ("nt_xent", "rows"), ("similarity_kl", "learnt"))
"""What else must compile without spilling: "learnt" holds the most numbers, the parts are compiled differently."""
WARPS = (4, 8)
STAGES = (1, 2, 3)
NUMBERS_A_THREAD = (1, 64)
"""Of a similarity tile: with more a thread's 255 registers are gone before anything else is held."""

REACH = {True: 1, False: 2}
"""How many halvings or doublings of a side, or steps of warps and stages, a candidate may be from the default; by
whether the search is to be quick."""
ROUNDS = {True: (5, 15), False: (7, 41)}
"""Timings of every candidate, then of the finalists; by whether the search is to be quick."""
FINALISTS = 4
MARGIN = 0.02
"""A tile must be faster than the default by this share in three rounds of four: between two graphs of the same kernel
the clock alone makes a difference."""


class TunedSize(NamedTuple):
    """What is tuned: the loss of ``rows`` rows a view of ``columns`` columns, both peers alike."""

    dtype: str
    columns: int
    rows: int

    def key(self, architecture: str) -> Key:
        """Where the choice is kept."""
        width = configurations.padded_width(self.columns, 4 if self.dtype == "float32" else 2)
        return configurations.bucket(architecture, self.dtype, width, self.rows)


class Outcome(NamedTuple):
    """What the compiler made of a tile: bytes of shared memory a program, registers and spilled bytes a thread (None
    where the target does not say), or why it failed."""

    shared: int = 0
    registers: int | None = None
    spilled: int | None = None
    failure: str = ""

    def rejection(self, shared_limit: int) -> str:
        """Why such a tile is not taken; "" where it may be."""
        if self.failure:
            return self.failure
        if self.shared > shared_limit:
            return f"{self.shared} bytes of shared memory, of {shared_limit}"
        return f"spills {self.spilled} bytes a thread" if self.spilled else ""


class Run(NamedTuple):
    """Seconds of a pass in each round; or none, and why."""

    seconds: Sequence[float] = ()
    failure: str = ""


class DefaultFailed(RuntimeError):
    """The shipped tiles cannot be run: there is nothing to compare others with."""


class Compile(Protocol):
    """Compiles one kernel of a size with each tile, for the GPU that is tuned; never raises for a tile."""

    def __call__(self, size: TunedSize, kernel: str, tiles: Sequence[Tile], what: tuple[str, str]) -> list[Outcome]: ...


class Time(Protocol):
    """Runs the pass that a kernel belongs to with each configuration; in a round every one has its turn. Never raises
    for a configuration."""

    def __call__(self, size: TunedSize, kernel: str, tried: Sequence[Configuration], rounds: int) -> list[Run]: ...


class Choice(NamedTuple):
    """The tile taken, its median time in seconds, and that over the default's."""

    tile: Tile
    seconds: float
    ratio: float


class Tools(NamedTuple):
    """How a search reaches the GPU and tells what it does."""

    compile: Compile
    time: Time
    shared_limit: int
    report: Callable[[str], None]


def all_tiles() -> Iterator[Tile]:
    """Every tile worth a thought, the largest first; of those alike, the one with more rows and fewer warps."""
    tiles = (Tile(*each) for each in itertools.product(configurations.SIDES, configurations.SIDES, WARPS, STAGES))
    least, most = NUMBERS_A_THREAD
    fitting = [tile for tile in tiles if least <= tile.rows * tile.keys / (32 * tile.num_warps) <= most]
    return iter(sorted(fitting, key=_size, reverse=True))


def _size(tile: Tile) -> tuple[int, int, int, int]:
    return tile.rows * tile.keys, tile.rows, -tile.num_warps, tile.num_stages


def distance(one: Tile, other: Tile) -> float:
    """Halvings, doublings and steps between two tiles; a step too from one division of the work to the other."""
    logarithms: float = sum(abs(math.log2(a / b)) for a, b in zip(one[:3], other[:3], strict=True))
    if one.own_rows and other.own_rows:
        logarithms += abs(math.log2(one.own_rows / other.own_rows))
    elif one.own_rows or other.own_rows:
        logarithms += 1
    return logarithms + float(abs(one.num_stages - other.num_stages))


def candidates(default: Tile, reach: float) -> list[Tile]:
    """The tiles near the default, of either division of the work, without itself, the nearest first."""
    tiles = (tile._replace(own_rows=rows) for tile in all_tiles() for rows in (0, *configurations.OWN_SIDES))
    allowed = (tile for tile in tiles if not tile.own_rows or configurations.divisible_by_squares(tile))
    near = [tile for tile in allowed if 0 < distance(tile, default) <= reach]
    return sorted(near, key=lambda tile: distance(tile, default))


def is_faster(seconds: Sequence[float], default: Sequence[float]) -> bool:
    """Whether a tile beats the default by MARGIN in three rounds of four, each round by itself."""
    won = [ours < (1 - MARGIN) * theirs for ours, theirs in zip(seconds, default, strict=True)]
    return 4 * sum(won) >= 3 * len(won) > 0


def choose(size: TunedSize, kernel: str, default: Configuration, tools: Tools, quick: bool) -> Choice:
    """The fastest tile of one kernel near the default, that no loss spills with; the default itself unless one is
    faster beyond noise.

    Raises:
        DefaultFailed: the default cannot be run.
    """
    usual: Tile = getattr(default, kernel)
    tiles = candidates(usual, REACH[quick])
    fitting = []
    for tile, outcome in zip(tiles, tools.compile(size, kernel, tiles, TIMED), strict=True):
        if reason := outcome.rejection(tools.shared_limit):
            tools.report(f"  {kernel} {tile}: left out, {reason}")
        else:
            fitting.append(tile)
    rounds, more_rounds = ROUNDS[quick]
    first = _times(tools, size, kernel, default, fitting, rounds) if fitting else {}
    finalists = sorted((tile for tile in first if tile != usual), key=lambda tile: statistics.median(first[tile]))
    times = _times(tools, size, kernel, default, finalists[:FINALISTS], more_rounds)
    usual_median = statistics.median(times[usual])
    for tile in sorted(times, key=lambda tile: statistics.median(times[tile])):
        if not is_faster(times[tile], times[usual]):
            continue
        if reason := _rejection_elsewhere(tools, size, kernel, tile):
            tools.report(f"  {kernel} {tile}: left out, {reason}")
            continue
        return Choice(tile, statistics.median(times[tile]), statistics.median(times[tile]) / usual_median)
    return Choice(usual, usual_median, 1.0)


def _rejection_elsewhere(tools: Tools, size: TunedSize, kernel: str, tile: Tile) -> str:
    """Why the other losses and variants cannot have a tile."""
    for what in OTHERS:
        reason = tools.compile(size, kernel, [tile], what)[0].rejection(tools.shared_limit)
        if reason:
            return f"{' '.join(what)} {reason}"
    return ""


def _times(
    tools: Tools, size: TunedSize, kernel: str, default: Configuration, tiles: Sequence[Tile], rounds: int
) -> dict[Tile, Sequence[float]]:
    """Of the default, and of every tile in its place that can be run.

    Raises:
        DefaultFailed: see ``choose``.
    """
    tried = [default, *(default._replace(**{kernel: tile}) for tile in tiles)]
    usual, *others = tools.time(size, kernel, tried, rounds)
    if not usual.seconds:
        raise DefaultFailed(f"the shipped tiles of the {kernel} kernel, {getattr(default, kernel)}, {usual.failure}")
    times = {getattr(default, kernel): usual.seconds}
    for tile, run in zip(tiles, others, strict=True):
        if run.seconds:
            times[tile] = run.seconds
        else:
            tools.report(f"  {kernel} {tile}: left out, {run.failure}")
    return times

"""Whether something became slower: the ratios of one run against those of runs made before, on the same machine.

    check RUN.json BEFORE.json BEFORE.json ...

A ratio is the time of a contender over ours in the same run, so it is independent of the machine's mood; what noise is
left is measured: of the logarithms of each ratio, over the runs before, the mean m and the standard deviation s. A
ratio is slower where its logarithm is below m − 4 s, with s no less than the median of all, nor than 2 %.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..records import LossInfo, NotARecord, RatedInfo, Record, load
from ..tables import MISSING, number, table

DEVIATIONS = 4.0
COMPARED_WITH = ("torch", "triton", "torchvision", "kornia")
"""Packages in whose versions ratios may differ."""
LEAST_DEVIATION = 0.02
FEWEST_RUNS = 5
FASTER, SLOWER, SAME, GONE = "faster", "SLOWER", "", "NOT RUN"


class Band(NamedTuple):
    """What a ratio may be with nothing changed."""

    low: float
    middle: float
    high: float


def ratios(record: Record) -> dict[str, float]:
    """Of every benchmark and contender, by a name that tells both: median over the rounds."""
    found = {
        f"{info.loss}, {info.device}, {info}: {phase} × {name}": values.median
        for info in record.of(LossInfo)
        for name, phases in info.faster_than.items()
        for phase, values in (("forward", phases.forward), ("both", phases.both))
    }
    return found | {
        f"{info.kind}, {info}: × {name}": values.median
        for info in record.of(RatedInfo)
        for name, values in info.faster_than.items()
    }


def kind_of(record: Record) -> dict[str, Any]:
    """What must be the same for ratios to be compared."""
    versions = record.machine.versions
    return {
        "name": record.name,
        "cores": record.machine.cpu.count,
        "threads": record.machine.threads,
        "versions": {name: versions[name] for name in COMPARED_WITH if name in versions},
        "grid": record.grid,
    }


def bands(before: Sequence[Record]) -> dict[str, Band]:
    """Of every ratio that repeated runs of the same code have in common.

    Raises:
        NotARecord: too few runs, or of several commits, or nothing in common.
    """
    different = len({record.path.resolve() for record in before})
    if different < FEWEST_RUNS:
        raise NotARecord(f"at least {FEWEST_RUNS} runs before must be given, got {different}: make bench-noise")
    for record in before:
        if record.commit != before[0].commit:
            raise NotARecord(f"{record.path} is of another commit than {before[0].path}")
    runs = [ratios(record) for record in before]
    logarithms = {name: [math.log(run[name]) for run in runs] for name in runs[0] if all(name in run for run in runs)}
    if not logarithms:
        raise NotARecord("the runs before must have ratios in common, got none")
    spreads = {name: statistics.stdev(values) for name, values in logarithms.items()}
    least = max(LEAST_DEVIATION, statistics.median(spreads.values()))
    middles = {name: statistics.fmean(values) for name, values in logarithms.items()}
    widths = {name: DEVIATIONS * max(least, spread) for name, spread in spreads.items()}
    return {
        name: Band(*(math.exp(middle + sign * widths[name]) for sign in (-1, 0, 1))) for name, middle in middles.items()
    }


def compare(run: Record, before: Sequence[Record]) -> list[tuple[str, float | None, Band, str]]:
    """Name, ratio now, band and verdict of every ratio of the runs before.

    Raises:
        NotARecord: runs of several kinds of machines or grids; and see ``bands``.
    """
    for record in before:
        if kind_of(record) != kind_of(run):
            raise NotARecord(f"{record.path} is of {kind_of(record)}, {run.path} of {kind_of(run)}")
    found, out = ratios(run), []
    for name, band in bands(before).items():
        now = found.get(name)
        verdict = GONE if now is None else SLOWER if now < band.low else FASTER if now > band.high else SAME
        out.append((name, now, band, verdict))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing slower; 1: something is, or did not run; 2: nothing to compare with, or no records."""
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.bench.reports.check")
    parser.add_argument("run", type=Path)
    parser.add_argument("before", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    try:
        before = [load(path) for path in options.before]
        compared = compare(load(options.run), before)
    except NotARecord as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [
        [
            name,
            MISSING if now is None else number(now),
            f"{number(band.middle)} ({number(band.low)}–{number(band.high)})",
            verdict,
        ]
        for name, now, band, verdict in compared
    ]
    print("\n".join(table(["ratio", "now", "before (band)", ""], rows)))
    print(f"bands: {DEVIATIONS:g} standard deviations of {len(before)} runs at {before[0].commit.id[:12]}")
    worse = sum(verdict in (SLOWER, GONE) for *_, verdict in compared)
    if worse:
        print(f"slower than the noise allows, or not run: {worse} of {len(compared)}", file=sys.stderr)
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Whether something became slower: ratios of one run against those of repeated runs on the same kind of machine.

    check noise RUN.json RUN.json ... --out FILE    repeated runs of the same code, made one record
    check compare RUN.json [FILE ...]               against the record of this kind of machine

A ratio is the time of a contender over ours in the same run, so it is independent of the machine's mood; what noise is
left is measured: of the logarithms of each ratio, over the repeated runs, the mean m and the standard deviation s. A
ratio is slower where its logarithm is below m − 4 s, with s no less than the median of all, nor than 2 %.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dogo_fast.atomic import write_atomically
from dogo_fast.errors import UserError

from ..records import RESULTS, AboveZero, Commit, LossInfo, NotARecord, Part, RatedInfo, Record, load, read
from ..tables import MISSING, number, table

DEVIATIONS = 4.0
COMPARED_WITH = ("torch", "triton", "torchvision", "kornia")
"""Packages in whose versions ratios may differ."""
LEAST_DEVIATION = 0.02
FEWEST_RUNS = 5
FASTER, SLOWER, SAME, GONE = "faster", "SLOWER", "", "NOT RUN"


class Noise(Part):
    """The record of repeated runs of the same code."""

    machine: dict[str, Any]
    grid: str
    commit: Commit
    ratios: Annotated[dict[str, Annotated[list[AboveZero], Field(min_length=FEWEST_RUNS)]], Field(min_length=1)]

    @property
    def runs(self) -> int:
        return len(next(iter(self.ratios.values())))

    def bands(self) -> dict[str, tuple[float, float, float]]:
        """(lowest, middle, highest) of each ratio that is no change."""
        logarithms = {name: [math.log(value) for value in values] for name, values in self.ratios.items()}
        spreads = {name: statistics.stdev(values) for name, values in logarithms.items()}
        least = max(LEAST_DEVIATION, statistics.median(spreads.values()))
        out = {}
        for name, values in logarithms.items():
            middle, width = statistics.fmean(values), DEVIATIONS * max(least, spreads[name])
            out[name] = (math.exp(middle - width), math.exp(middle), math.exp(middle + width))
        return out


def load_noise(path: Path) -> Noise:
    """A record of repeated runs; raises NotARecord."""
    return read(path, Noise, "a record of repeated runs")


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


def machine_of(record: Record) -> dict[str, Any]:
    """What must be the same for ratios to be compared."""
    machine = record.machine
    return {
        "name": record.name,
        "cores": machine.cpu.count,
        "threads": machine.threads,
        "versions": {name: machine.versions[name] for name in COMPARED_WITH if name in machine.versions},
    }


def measure_noise(records: Sequence[Record]) -> Noise:
    """The record of repeated runs.

    Raises:
        NotARecord: too few runs, or runs of several kinds of machines, grids or commits.
    """
    different = len({record.path.resolve() for record in records})
    if different < FEWEST_RUNS:
        raise NotARecord(f"at least {FEWEST_RUNS} runs must be given, got {different}")
    kinds = [(machine_of(record), record.grid, record.commit.id) for record in records]
    for record, own in zip(records, kinds, strict=True):
        if own != kinds[0]:
            raise NotARecord(f"{record.path} is of another kind of run than {records[0].path}: {own} and {kinds[0]}")
    runs = [ratios(record) for record in records]
    common = {name: [run[name] for run in runs] for name in runs[0] if all(name in run for run in runs)}
    if not common:
        raise NotARecord("the runs must have ratios in common, got none")
    machine, grid, _ = kinds[0]
    return Noise(machine=machine, grid=grid, commit=records[0].commit, ratios=common)


def compare(record: Record, noise: Noise) -> list[tuple[str, float | None, tuple[float, float, float], str]]:
    """Name, ratio now, band and verdict of everything that was recorded."""
    found, out = ratios(record), []
    for name, (low, middle, high) in noise.bands().items():
        now = found.get(name)
        verdict = GONE if now is None else SLOWER if now < low else FASTER if now > high else SAME
        out.append((name, now, (low, middle, high), verdict))
    return out


def find_noise(record: Record, paths: Sequence[Path]) -> Noise:
    """The record of repeated runs on the same kind of machine.

    Raises:
        NotARecord: there is none.
    """
    wanted = (machine_of(record), record.grid)
    said = ["no ratios are recorded for {}, grid {}: record some with make bench-noise".format(*wanted)]
    for path in paths:
        try:
            noise = load_noise(path)
        except NotARecord as error:
            said.append(str(error))
            continue
        if (noise.machine, noise.grid) == wanted:
            return noise
        said.append(f"{path} is of {noise.machine}, grid {noise.grid}")
    raise NotARecord("; ".join(said))


def print_comparison(record: Record, noise: Noise) -> int:
    """Returns the exit code: 1 where something is slower or did not run."""
    compared = compare(record, noise)
    rows = [
        [name, MISSING if now is None else number(now), f"{number(middle)} ({number(low)}–{number(high)})", verdict]
        for name, now, (low, middle, high), verdict in compared
    ]
    print("\n".join(table(["ratio", "now", "recorded (band)", ""], rows)))
    print(f"bands: {DEVIATIONS:g} standard deviations of {noise.runs} repeated runs at {noise.commit.id[:12]}")
    worse = sum(verdict in (SLOWER, GONE) for *_, verdict in compared)
    if worse:
        print(f"slower than the noise allows, or not run: {worse} of {len(compared)}", file=sys.stderr)
    return int(worse > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing slower; 1: something is; 2: nothing to compare with, or no records."""
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.bench.reports.check")
    commands = parser.add_subparsers(dest="command", required=True)
    noise = commands.add_parser("noise", help="make one record of repeated runs")
    noise.add_argument("runs", nargs="+", type=Path)
    noise.add_argument("--out", type=Path, required=True)
    comparison = commands.add_parser("compare", help="compare a run with the record")
    comparison.add_argument("run", type=Path)
    comparison.add_argument("recorded", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "noise":
            text = measure_noise([load(path) for path in options.runs]).model_dump_json(indent=1)
            write_atomically(options.out, (text + "\n").encode())
            return 0
        record = load(options.run)
        return print_comparison(record, find_noise(record, options.recorded or sorted(RESULTS.glob("noise-*.json"))))
    except (NotARecord, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

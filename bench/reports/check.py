"""Whether something became slower: ratios of one run against those of repeated runs on the same kind of machine.

    check noise RUN.json RUN.json ... --out FILE    repeated runs of the same code, made one record
    check compare RUN.json [FILE ...]               against the record of this kind of machine

A ratio is the time of a contender over ours in the same run, so it is independent of the machine's mood; what noise is
left is measured: of the logarithms of each ratio, over the repeated runs, the mean m and the standard deviation s. A
ratio is slower where its logarithm is below m − 4 s, with s no less than the median of all, nor than 2 %.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dogo_fast.atomic import write_atomically
from dogo_fast.errors import UserError

from ..records import RESULTS, NotARecord, Record, load
from ..tables import describe, number, table

DEVIATIONS = 4.0
COMPARED_WITH = ("torch", "triton", "torchvision", "kornia")
"""Packages in whose versions ratios may differ."""
LEAST_DEVIATION = 0.02
FEWEST_RUNS = 5
FASTER, SLOWER, SAME, GONE = "faster", "SLOWER", "", "NOT RUN"


def ratios(record: Record) -> dict[str, float]:
    """Of every benchmark and contender, by a name that tells both: median over the rounds.

    Raises:
        NotARecord: one that is missing, not finite or not above 0.
    """
    try:
        found = dict(_ratios(record))
        wrong = [name for name, value in found.items() if not 0 < value < math.inf]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise NotARecord(f"{record.path} has damaged ratios: {type(error).__name__}: {error}") from None
    if wrong or not found:
        raise NotARecord(f"{record.path} must have ratios above 0, got {wrong[0] if wrong else 'none'}")
    return found


def _ratios(record: Record) -> Iterator[tuple[str, float]]:
    for info in record.infos:
        if info["kind"] == "loss":
            what = f"{info['loss']}, {info['device']}, N = {info['N']}, D = {info['D']}, {info['dtype']}"
            for name, phases in info["faster_than"].items():
                for phase in ("forward", "both"):
                    yield f"{what}: {phase} × {name}", phases[phase][1]
        else:
            for name, values in info["faster_than"].items():
                yield f"{info['kind']}, {describe(info)}: × {name}", values[1]


def machine_of(record: Record) -> dict[str, Any]:
    """What must be the same for ratios to be compared."""
    versions = record.machine["versions"]
    return {
        "name": record.name,
        "cores": record.machine["cpu"]["count"],
        "threads": record.machine["threads"],
        "versions": {name: versions[name] for name in COMPARED_WITH if name in versions},
    }


def measure_noise(records: Sequence[Record]) -> dict[str, Any]:
    """The record of repeated runs.

    Raises:
        NotARecord: too few runs, or runs of several kinds of machines, grids or commits.
    """
    different = len({record.path.resolve() for record in records})
    if different < FEWEST_RUNS:
        raise NotARecord(f"at least {FEWEST_RUNS} runs must be given, got {different}")
    for record in records[1:]:
        for what, own, first in (
            ("machine", machine_of(record), machine_of(records[0])),
            ("grid", record.grid, records[0].grid),
            ("commit", record.commit["id"], records[0].commit["id"]),
        ):
            if own != first:
                raise NotARecord(f"{record.path} is of another {what} than {records[0].path}: {own} and {first}")
    runs = [ratios(record) for record in records]
    common = [name for name in runs[0] if all(name in run for run in runs)]
    return {
        "machine": machine_of(records[0]),
        "head": records[0].head(),
        "grid": records[0].grid,
        "commit": records[0].commit,
        "ratios": {name: [run[name] for run in runs] for name in common},
    }


def bands(recorded: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """(lowest, middle, highest) ratio that is no change."""
    logarithms = {name: [math.log(value) for value in values] for name, values in recorded.items()}
    spreads = {name: statistics.stdev(values) for name, values in logarithms.items()}
    least = max(LEAST_DEVIATION, statistics.median(spreads.values()))
    out = {}
    for name, values in logarithms.items():
        middle, width = statistics.fmean(values), DEVIATIONS * max(least, spreads[name])
        out[name] = (math.exp(middle - width), math.exp(middle), math.exp(middle + width))
    return out


def compare(record: Record, noise: dict[str, Any]) -> list[tuple[str, float | None, tuple[float, float, float], str]]:
    """Name, ratio now, band and verdict of everything that was recorded."""
    found = ratios(record)
    out = []
    for name, band in bands(noise["ratios"]).items():
        now = found.get(name)
        verdict = GONE if now is None else SLOWER if now < band[0] else FASTER if now > band[2] else SAME
        out.append((name, now, band, verdict))
    return out


def find_noise(record: Record, paths: Sequence[Path]) -> dict[str, Any]:
    """The record of repeated runs on the same kind of machine.

    Raises:
        NotARecord: there is none.
    """
    others = []
    for path in paths:
        try:
            noise = load_noise(path)
        except NotARecord as error:
            others.append(str(error))
            continue
        if noise["machine"] == machine_of(record) and noise["grid"] == record.grid:
            return noise
        others.append(f"{path} is of {noise['machine']}, grid {noise['grid']}")
    what = f"no ratios are recorded for {machine_of(record)}, grid {record.grid}: record some with make bench-noise"
    raise NotARecord("; ".join([what, *others]))


def load_noise(path: Path) -> dict[str, Any]:
    """A record of repeated runs.

    Raises:
        NotARecord: a file that is none.
    """
    try:
        noise: dict[str, Any] = json.loads(path.read_text())
        assert isinstance(noise["machine"], dict) and isinstance(noise["commit"]["id"], str) and noise["grid"]
        assert noise["ratios"]
        for values in noise["ratios"].values():
            assert len(values) >= FEWEST_RUNS and all(0 < value < math.inf for value in values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise NotARecord(f"{path} is not a record of repeated runs ({type(error).__name__} {error})") from None
    return noise


def _print_comparison(record: Record, noise: dict[str, Any]) -> int:
    compared = compare(record, noise)
    rows = [
        [name, "–" if now is None else number(now), f"{number(middle)} ({number(low)}–{number(high)})", verdict]
        for name, now, (low, middle, high), verdict in compared
    ]
    print("\n".join(table(["ratio", "now", "recorded (band)", ""], rows)))
    runs = len(next(iter(noise["ratios"].values())))
    print(f"bands: {DEVIATIONS:g} standard deviations of {runs} repeated runs at {noise['commit']['id'][:12]}")
    worse = [name for name, *_, verdict in compared if verdict in (SLOWER, GONE)]
    if worse:
        print(f"slower than the noise allows, or not run: {len(worse)} of {len(compared)}", file=sys.stderr)
    return 1 if worse else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing slower; 1: something is; 2: nothing to compare with, or no records."""
    parser = argparse.ArgumentParser(
        prog="python -m dogo_fast.bench.reports.check", description=__doc__.split("\n", 1)[0]
    )
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
            text = json.dumps(measure_noise([load(path) for path in options.runs]), indent=1, ensure_ascii=False)
            write_atomically(options.out, (text + "\n").encode())
            return 0
        record = load(options.run)
        return _print_comparison(record, find_noise(record, options.recorded or sorted(RESULTS.glob("noise-*.json"))))
    except (NotARecord, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""A record as tables in Markdown, for the terminal and for docs/performance.md.

python -m dogo_fast.bench.tables FILE.json
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS
from .fields import PhaseShares
from .per_kernel import predicted_seconds
from .records import RESULTS, NotARecord, Record, load
from .work import PASSES, Shape, bound

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
TITLES = {
    "dogo_loss": "Whole DoGo loss",
    "nt_xent": "NT-Xent alone",
    "similarity_kl": "Similarity KL alone, constant teacher",
}
RATED = {"views": "Views", "step": "Training steps", "pretraining": "Pretraining, end to end"}
"""Titles of the kinds of benchmarks that have a rate."""
PLACES = {"cpu": "CPU", "cuda": "GPU"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns: the first, which says what a row is, to the left, all others to the right. A bar in a cell, as
    an error's message may have, becomes a slash."""
    cells = [[cell.replace("|", "/") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    first, *others = widths
    lines = [f"| {row[0].ljust(first)} | " + " | ".join(map(str.rjust, row[1:], others)) + " |" for row in cells]
    rule = f"|{'-' * (first + 2)}|" + "|".join("-" * (width + 1) + ":" for width in others) + "|"
    return [lines[0], rule, *lines[1:]]


def number(value: float, digits: int = 3) -> str:
    """To so many significant digits, without an exponent."""
    if value == 0:
        return "0"
    shown = f"{value:.{digits}g}"
    if "e" in shown or float(shown) >= 10 ** (digits - 1):
        return f"{float(shown):,.0f}"
    return shown


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = (number(scale * value, digits) for value in values)
    return f"{middle} ({low}–{high})"


def loss_table(record: Record, loss: str, device: str) -> list[str]:
    """Times, how much longer the others take, and percents of the bound of forward, backward and both; * marks one
    that no CUDA graph can hold, which runs in eager."""
    infos = list(record.of("loss", loss, device))
    present = [name for name in CONTENDERS if any(name in info["seconds"] or name in info["missing"] for info in infos)]
    head = [
        "dtype",
        "N",
        "D",
        "forward, ms",
        "backward, ms",
        "both, ms",
        *(f"× {name}" for name in present),
        "% of bound",
    ]
    rows = []
    for info in infos:
        ours = info["seconds"]["ours"]
        eager = _eager(info, "ours")
        times = [spread(ours[phase], 1e3) + eager for phase in ("forward", "backward", "both")]
        others = [_ratio(info, name) for name in present]
        percent = ", ".join(f"{value:.0f}" for value in percents_of_bound(info))
        rows.append([info["dtype"], str(info["N"]), str(info["D"]), *times, *others, percent])
    return table(head, rows)


def percents_of_bound(info: dict[str, Any]) -> list[float]:
    """Of forward, backward and both: the least time of the needed work at the rates of the run, over ours."""
    peers = 1 if info["loss"] == "nt_xent" else 2
    shape = Shape(info["loss"], info["N"], (info["D"],) * peers, ITEMSIZES[info["dtype"]])
    on_gpu = info["device"] == "cuda"
    return [
        100 * bound(shape, info["roofline"]["rates"], on_gpu, passes).total / info["seconds"]["ours"][phase][1]
        for phase, passes in (("forward", ("forward",)), ("backward", ("backward",)), ("both", PASSES))
    ]


def _eager(info: dict[str, Any], name: str) -> str:
    return "*" if info["device"] == "cuda" and not info["captured"][name] else ""


def _ratio(info: dict[str, Any], name: str) -> str:
    if name in info["faster_than"]:
        return spread(info["faster_than"][name]["both"], digits=2) + _eager(info, name)
    return str(info["missing"].get(name, "–")).split(":")[0]


def memory_table(record: Record, loss: str, device: str) -> list[str]:
    """Memory above the inputs, and errors against float64."""
    infos = list(record.of("loss", loss, device))
    present = ["ours", *(name for name in CONTENDERS if any(name in info["memory_bytes"] for info in infos))]
    head = ["dtype", "N", "D", *(f"{name}, MiB" for name in present), "error: ours", "dense"]
    rows = []
    for info in infos:
        memory = [info["memory_bytes"].get(name) for name in present]
        errors = [info["relative_error"].get(name) for name in ("ours", "dense")]
        rows.append(
            [
                info["dtype"],
                str(info["N"]),
                str(info["D"]),
                *("–" if value is None else number(value / 2**20) for value in memory),
                *("–" if error is None else f"{error[0]:.0e}, {error[1]:.0e}" for error in errors),
            ]
        )
    return table(head, rows)


def rate_table(record: Record, kind: str) -> list[str]:
    """Views or images a second."""
    infos = list(record.of(kind))
    others = list(dict.fromkeys(name for info in infos for name in info["faster_than"]))
    rows = [
        [
            describe(info),
            spread(info["per_second"]["ours"]),
            *(spread(info["faster_than"][name], digits=2) if name in info["faster_than"] else "–" for name in others),
            *([percent_of_copy(record, info)] if kind == "views" else []),
        ]
        for info in infos
    ]
    bound_of = ["% of a copy's rate"] if kind == "views" else []
    return table(["", unit(kind), *(f"× {name}" for name in others), *bound_of], rows)


def unit(kind: str) -> str:
    """Of a rate."""
    return "views/s" if kind == "views" else "images/s"


def percent_of_copy(record: Record, info: dict[str, Any]) -> str:
    """Bytes of views, each written once and a quarter of an image read for it, over those a copy moves in that time."""
    rates = [each["roofline"]["rates"]["copy"] for each in record.of("loss", device=info["device"])]
    if not rates:
        return "–"
    itemsize = 2 if info["device"] == "cuda" else 4
    moved = info["per_second"]["ours"][1] * 3 * info["size"] ** 2 * (itemsize + 1 / 4)
    return number(100 * moved / rates[0], 2)


def describe(info: dict[str, Any]) -> str:
    """What views or steps were made of."""
    where = PLACES[info["device"]]
    if info["kind"] == "views":
        return f"{where}, {info['size']} px, {info['recipe']}, {info['N']} images"
    if info["kind"] == "step":
        return f"{where}, two {info['backbone']}, batch {info['N']}"
    return f"{where}, two {info['backbone']}, {info['images']} images, batch {info['N']}"


def phase_table(record: Record) -> list[str]:
    """Where the time of an eager step goes, and how long a GPU idles in a captured one."""
    infos = list(record.of("step"))
    phases = list(PhaseShares.model_fields)
    rows = []
    for info in infos:
        idle = info.get("gpu_idle_share")
        shares = [f"{100 * info['phase_shares'][phase][1]:.1f}" for phase in phases]
        rows.append([describe(info), *shares, "–" if idle is None else f"{100 * idle:.1f}"])
    return table(["", *(f"{phase}, %" for phase in phases), "GPU idle, %"], rows)


def kernel_table(record: Record) -> list[str]:
    """Each kernel on a GPU: its time, its work, its bound, the percent reached, and what its machine code predicts."""
    path = RESULTS / f"roofline-{record.machine['gpu'].get('architecture')}.json"
    static = json.loads(path.read_text())["predictions"] if path.is_file() else []
    head = ["", "dtype", "D", "N", "kernel", "tile", "µs", "predicted, µs", "GFLOP", "exponentials, M", "MB"]
    head += ["bound, µs", "limiter", "% of bound"]
    rows = []
    for measured in (info["kernels"] for info in record.infos if "kernels" in info):
        case = measured["case"]
        what = [f"{case['loss']}, {case['variant']}", case["dtype"], str(case["D"]), str(case["N"])]
        if "unavailable" in measured:
            rows.append([*what, f"unmeasured: {measured['unavailable']}", *["–"] * (len(head) - 5)])
        for row in measured.get("kernels", ()):
            predicted = predicted_seconds(row, measured, static)
            run, least = row["run"], row["needed"]
            work = [(run["flop"], least["flop"], 1e9), (run["exponentials"], least["exponentials"], 1e6)]
            rows.append(
                [
                    *what,
                    row["kernel"].removesuffix("_kernel"),
                    f"{row['tile']}, {row['warps']} warps".removeprefix(", "),
                    spread(row["seconds"], 1e6),
                    "–" if predicted is None else " to ".join(number(1e6 * value) for value in predicted),
                    *(f"{number(own / unit)} ({number(needed / unit)})" if own else "–" for own, needed, unit in work),
                    number(run["bytes"] / 1e6),
                    number(1e6 * row["bound_seconds"]),
                    row["limiter"],
                    f"{row['percent']:.0f}",
                ]
            )
    return table(head, rows)


def sections(record: Record) -> list[tuple[str, list[str]]]:
    """Title and table of everything a record has."""
    found = []
    for device in ("cuda", "cpu"):
        where = f", {PLACES[device]}" if record.device == "cuda" else ""
        for loss, title in TITLES.items():
            if any(record.of("loss", loss, device)):
                found.append((title + where, loss_table(record, loss, device)))
        for loss, title in TITLES.items():
            if any(record.of("loss", loss, device)):
                found.append((f"Memory and error: {title}{where}", memory_table(record, loss, device)))
    for kind, title in RATED.items():
        if any(record.of(kind)):
            found.append((title, rate_table(record, kind)))
    if any(record.of("step")):
        found.append(("Shares of an eager step", phase_table(record)))
    if any("kernels" in info for info in record.infos):
        found.append(("Kernels on the GPU", kernel_table(record)))
    return found


def main(arguments: Sequence[str]) -> int:
    try:
        record = load(Path(arguments[0]))
    except (IndexError, NotARecord) as error:
        print(error if isinstance(error, NotARecord) else "a record must be given: FILE.json", file=sys.stderr)
        return 2
    print("\n".join(record.head()))
    for title, lines in sections(record):
        print(f"\n{title}\n", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

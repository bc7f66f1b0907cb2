"""A record as tables in Markdown, for the terminal and for docs/performance.md.

python -m dogo_fast.bench.tables FILE.json
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from . import records
from .contenders import CONTENDERS
from .records import PLACES, Info, KernelsInfo, LossInfo, NotARecord, Record, ViewsInfo, load
from .work import PASSES, Shape, bound, least_seconds

TITLES = {
    "dogo_loss": "Whole DoGo loss",
    "nt_xent": "NT-Xent alone",
    "similarity_kl": "Similarity KL alone, constant teacher",
}
RATED: dict[type[records.RatedInfo], str] = {
    ViewsInfo: "Views",
    records.StepInfo: "Training steps",
    records.PretrainingInfo: "Pretraining, end to end",
    records.StreamingInfo: "Photographs, from JPEG files to four views of each",
}
"""Titles of the kinds of benchmarks that have a rate."""
MISSING = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns: the first, which says what a row is, to the left, all others to the right. A bar in a cell, as
    an error's message may have, becomes a slash."""
    cells = [[cell.replace("|", "/") for cell in row] for row in (head, *rows)]
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
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


def loss_table(infos: Sequence[LossInfo]) -> list[str]:
    """Times, how much longer the others take, and percents of the bound of forward, backward and both; * marks one
    that no CUDA graph can hold, which runs in eager."""
    present = [name for name in CONTENDERS if any(name in {**info.seconds, **info.missing} for info in infos)]
    times = [f"{phase}, ms" for phase in ("forward", "backward", "both")]
    rows = []
    for info in infos:
        stars = {name: "*" if info.device == "cuda" and not info.captured.get(name) else "" for name in info.seconds}
        ours = info.seconds["ours"]
        ratios = [
            spread(info.faster_than[name].both, digits=2) + stars[name]
            if name in info.faster_than
            else info.missing.get(name, MISSING).split(":")[0]
            for name in present
        ]
        taken = [spread(phase, 1e3) + stars["ours"] for phase in (ours.forward, ours.backward, ours.both)]
        percents = ", ".join(f"{value:.0f}" for value in percents_of_bound(info))
        rows.append([*_size(info), *taken, *ratios, percents])
    return table(["dtype", "N", "D", *times, *(f"× {name}" for name in present), "% of bound"], rows)


def _size(info: LossInfo) -> list[str]:
    return [info.dtype, str(info.N), str(info.D)]


def percents_of_bound(info: LossInfo) -> list[float]:
    """Of forward, backward and both: the least time of the needed work at the rates of the run, over ours."""
    shape = Shape(info.loss, info.N, info.D, getattr(torch, info.dtype).itemsize)
    rates, ours = info.rates.model_dump(by_alias=True), info.seconds["ours"]
    return [
        100 * least_seconds(bound(shape, rates, passes), info.device == "cuda") / seconds.median
        for passes, seconds in ((PASSES[:1], ours.forward), (PASSES[1:], ours.backward), (PASSES, ours.both))
    ]


def memory_table(infos: Sequence[LossInfo]) -> list[str]:
    """Memory above the inputs, and errors against float64."""
    present = ["ours", *(name for name in CONTENDERS if any(name in info.memory_bytes for info in infos))]
    rows = []
    for info in infos:
        memory = [number(info.memory_bytes[name] / 2**20) if name in info.memory_bytes else MISSING for name in present]
        errors = [info.relative_error.get(name) for name in ("ours", "dense")]
        shown = [MISSING if error is None else f"{error[0]:.0e}, {error[1]:.0e}" for error in errors]
        rows.append([*_size(info), *memory, *shown])
    return table(["dtype", "N", "D", *(f"{name}, MiB" for name in present), "error: ours", "dense"], rows)


def rate_table(record: Record, kind: type[records.RatedInfo]) -> list[str]:
    """Views or images a second."""
    infos = record.of(kind)
    others = list(dict.fromkeys(name for info in infos for name in info.faster_than))
    rows = []
    for info in infos:
        ratios = [spread(info.faster_than[name], digits=2) if name in info.faster_than else MISSING for name in others]
        of_copy = [percent_of_copy(record, info)] if isinstance(info, ViewsInfo) else []
        rows.append([str(info), spread(info.per_second["ours"]), *ratios, *of_copy])
    bound_of = ["% of a copy's rate"] if kind is ViewsInfo else []
    return table(["", infos[0].unit, *(f"× {name}" for name in others), *bound_of], rows)


def percent_of_copy(record: Record, info: ViewsInfo) -> str:
    """Bytes of views, each written once and a quarter of an image read for it, over those a copy moves in that time."""
    losses = record.of(LossInfo, device=info.device)
    itemsize = 2 if info.device == "cuda" else 4
    moved = info.per_second["ours"].median * 3 * info.size**2 * (itemsize + 1 / 4)
    return number(100 * moved / losses[0].rates.copy_, 2) if losses else MISSING


def phase_table(infos: Sequence[records.StepInfo]) -> list[str]:
    """Where the time of an eager step goes, and how long a GPU idles in a captured one."""
    phases = list(dict.fromkeys(phase for info in infos for phase in info.phase_shares))
    rows = []
    for info in infos:
        shares = [info.phase_shares.get(phase) for phase in phases]
        idle = MISSING if info.gpu_idle_share is None else f"{100 * info.gpu_idle_share:.1f}"
        rows.append([str(info), *(f"{100 * share.median:.1f}" if share else MISSING for share in shares), idle])
    return table(["", *(f"{phase}, %" for phase in phases), "GPU idle, %"], rows)


def kernel_table(found: Iterable[KernelsInfo]) -> list[str]:
    """Each kernel on a GPU: its time, its bound, and the percent reached."""
    head = ["", "dtype", "D", "N", "kernel", "tile", "µs", "bound, µs", "limiter", "% of bound"]
    rows = []
    for measured in found:
        case = measured.case
        what = [f"{case.loss}, {case.variant}", case.dtype, str(case.D), str(case.N)]
        if measured.unavailable is not None:
            rows.append([*what, f"unmeasured: {measured.unavailable}", *[MISSING] * (len(head) - 5)])
        for kernel in measured.kernels:
            limiter, bound_seconds = max(kernel.bound.items(), key=lambda item: item[1])
            tile = f"{kernel.tile}, {kernel.warps} warps".removeprefix(", ")
            times = [spread(kernel.seconds, 1e6), number(1e6 * bound_seconds)]
            percent = f"{100 * bound_seconds / kernel.seconds.median:.0f}"
            rows.append([*what, kernel.kernel.removesuffix("_kernel"), tile, *times, limiter, percent])
    return table(head, rows)


def rates_table(infos: Sequence[LossInfo]) -> list[str]:
    """What the machine reached, of the first loss of each device and dtype."""
    first: dict[tuple[str, str], records.Rates] = {}
    for info in infos:
        first.setdefault((info.device, info.dtype), info.rates)
    rows = [
        [*key, number(rates.gemm / 1e12), number(rates.exp2 / 1e9), number(rates.copy_ / 1e9)]
        for key, rates in first.items()
    ]
    return table(["device", "dtype", "products, TFLOP/s", "exponentials, G/s", "copy, GB/s"], rows)


def sections(record: Record) -> list[tuple[str, list[str]]]:
    """Title and table of everything a record has."""
    found = []
    for device in ("cuda", "cpu"):
        where = f", {PLACES[device]}" if record.device == "cuda" else ""
        losses = {title: record.of(LossInfo, loss=loss, device=device) for loss, title in TITLES.items()}
        there = {f"{title}{where}": infos for title, infos in losses.items() if infos}
        found += [(title, loss_table(infos)) for title, infos in there.items()]
        found += [(f"Memory and error: {title}", memory_table(infos)) for title, infos in there.items()]
    found += [(title, rate_table(record, kind)) for kind, title in RATED.items() if record.of(kind)]
    if steps := record.of(records.StepInfo):
        found.append(("Shares of an eager step", phase_table(steps)))
    if kernels := [info.kernels for info in record.of(Info) if info.kernels]:
        found.append(("Kernels on the GPU", kernel_table(kernels)))
    if infos := record.of(LossInfo):
        found.append(("Rates of the machine in that run", rates_table(infos)))
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

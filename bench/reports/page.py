"""docs/performance.md, its pictures, the figures of README.md, from the recorded runs.

    python -m dogo_fast.bench.reports.page [--check]

Nothing on the page is typed by hand: every number comes from a file in bench/results/, which the page names.
"""

import argparse
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from dogo_fast.ops.compiling import MULTIPROCESSORS, KernelCase

from .. import tables
from ..grid import MIDDLE
from ..per_kernel import PASSES
from ..records import (
    PLACES,
    RESULTS,
    LossInfo,
    NotARecord,
    PretrainingInfo,
    RatedInfo,
    Rates,
    Record,
    StepInfo,
    ViewsInfo,
    recorded,
)
from ..tables import MISSING, number, table
from . import check, plots
from .roofline import Report, load_report, predicted_seconds

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"
README = ROOT / "README.md"
MARKS = "<!-- figures: made by make page -->", "<!-- end of figures -->"
WIDTH = 118
"""Characters of a line of README.md."""

HEAD = """# Performance

Made from the records in `bench/results/` by `make page`; nothing here is typed by hand. `make bench` makes such a
record on your machine, `dogo-fast benchmark` from an installed package; with `--minutes 9` it begins no case after nine
minutes, what the project is for first. A run that is ended leaves what it had measured beside the record, with
`-incomplete` in its name; this page passes that over.

Times are medians, with quartiles in brackets. × says how much longer something else takes: the median, over the
rounds of one run, of its time over ours in the same round, in which all run one right after the other (on a GPU each
beside ours alone); there are 5 rounds at the least and up to 60 of short ones. `dense` is the plain formula, `compile`
is `torch.compile` of it for that shape alone, `authors` the formula of the authors' published code, which broadcasts;
`lightly` and `metric-learning` are the NT-Xent of lightly and pytorch-metric-learning, beside the dense KL in the whole
loss. cut-cross-entropy and Inf-CL have no loss that leaves a row's similarity with itself out, so they do not apply.
The bound is the least time of the [counted work](derivation.md#what-it-costs), products and exponentials, at the rates
that the machine reached in the same run; its percents are of forward, backward and both; more than 100 says that
something else ran while the rates were measured. Before a short pass of a contender on a CPU, the others' threads get
time to fall asleep. "Does not fit" is a forecast from smaller sizes against the memory that was free. Memory is what
a pass takes above its inputs, at most, on a CPU the growth of the resident set; errors are relative, of the value and
of all gradients, against the dense formula in float64, up to N = 1024 (on a GPU 4096).

Views and steps: torchvision v2 runs on one core, a view of an image at a time, as a worker of a DataLoader does, one
of the four views is timed and counts four times; ours and kornia have all threads. `authors` of a step and of
pretraining is a loop like theirs with a kinder loss: torchvision's views in the process itself, without workers, the
dense loss by matrix products, float32 in eager (on a GPU ours, and not kornia's views, is bfloat16). What views must
move is an image read and four views written.

Kernels on a GPU: the time of each in the profiler, beside the work that it runs (in brackets the part of it that is
needed), the bound of what is needed at the rates of that run, and what its machine code predicts where the static
roofline has the same code: all pipes busy to products in turns with the rest, of the multiprocessor that has most to
do, at the clock rate that the measured exponentials stand for.
"""

NO_GPU = """
## On a GPU

**No time has been measured on a GPU yet.** The kernels were checked value by value in Triton's interpreter and
compiled. On a machine with one, `make bench` measures the same table there: replays of CUDA graphs between events, up
to 512 inputs in rotation, to miss the L2 cache (N = 64 does not: 32 MB), running out of memory as a result; what no
graph can hold is starred and runs in eager; the backward is what both take more than the forward.
The time of each kernel is unmeasured too; below is what their machine code predicts.
"""

UNMEASURED = """**No time has been measured on a GPU yet**: the kernels were checked value by value in Triton's
interpreter and compiled for sm_80, sm_90, sm_100, sm_120 and gfx942, where the compiler's report chose the tiles. What
their machine code [says of an H200](docs/performance.md#aims), counted and not run, of the whole loss at N = 4096 in
bfloat16: {foreseen}. The captured step and the views' kernel have not run on a GPU either."""

AIMS = """
## Aims

On one H200, bfloat16, the whole loss at D = 128, forward and backward; medians. *Counted* is what the machine code of
the two large kernels says, not a measurement: of that of {multiprocessors} multiprocessors that has most to do, if it
kept to {clock:g} GHz, from all pipes busy at once to products in turns with everything else. Launches, latencies and
the device's memory come on top. The MiB are those of all buffers, gradients included.

"""
CLOCK = 1.8e9
"""Hz that a prediction is given in seconds for; an H200's boost clock is 1.98 GHz, under load it is less."""
AIMED_AT = "sm_90"

AIMED = {
    256: "at most 25 µs a replay",
    4096: "8 × dense, 4 × torch.compile",
    32768: "20 × dense, 60 % of the bound",
    262144: "runs in under 2 GiB",
}
"""By N."""

NAMED = {"shared": "shared memory", "special": "exponentials", "tensor": "products"}
"""Pipes of a multiprocessor."""


def write_page(records: Sequence[Record], folder: Path) -> str:
    """The page's text; the pictures are written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = [record for record in records if record.device == "cuda"]
    reports = {path: load_report(path) for path in sorted(RESULTS.glob("roofline-*.json"))}
    parts = [HEAD]
    if not on_gpu:
        parts.append(NO_GPU)
    parts += [AIMS.format(multiprocessors=MULTIPROCESSORS[AIMED_AT], clock=CLOCK / 1e9), "\n".join(_aims(on_gpu)), "\n"]
    for record in records:
        links = [*record.head(), f"[record]({_link(record.path)})"]
        parts.append(f"\n## {record.name}\n\n" + "  \n".join(links) + "\n")
        for what, path in plots.draw_all(record, folder).items():
            parts.append(f"\n![{plots.TITLES[what]}](plots/{path.name})\n")
        gpu = record.machine.gpu
        static = reports.get(RESULTS / f"roofline-{gpu.architecture}.json") if gpu else None
        predictions = static.predictions if static else []
        found = tables.sections(record, lambda *kernel: predicted_seconds(*kernel, predictions))  # noqa: B023
        for title, lines in [*found, ("Rates of the machine in that run", _rate_lines(record))]:
            parts.append("\n".join(["", f"### {title}", "", *lines, ""]))
    parts += [_static_roofline(path, report) for path, report in reports.items()]
    parts += [_noise(path) for path in sorted(RESULTS.glob("noise-*.json"))]
    return "".join(parts)


def _aims(records: Sequence[Record]) -> list[str]:
    """What is to be reached on a GPU beside what its machine code says and what each record of one has."""
    rows = [[f"N = {N}", aim, _foreseen(N)] for N, aim in AIMED.items()]
    rows.append(
        ["step, two resnet18", "15,000 images/s, GPU idle under 3 %, views under 3 % of an eager step", MISSING]
    )
    for record in records:
        wanted = {"loss": "dogo_loss", "device": "cuda", "D": MIDDLE, "dtype": "bfloat16"}
        found = [[_reached(info) for info in record.of(LossInfo, N=N, **wanted)] for N in AIMED]
        found.append([_stepped(info) for info in record.of(StepInfo, device="cuda", backbone="resnet18")])
        for row, each in zip(rows, found, strict=True):
            row.append("; ".join(each) or "not in this record")
    measured = [record.name for record in records] or ["measured"]
    return table(["", "aim", "counted", *measured], rows if records else [[*row, "unmeasured"] for row in rows])


def _foreseen(N: int) -> str:
    """Times, percents of the bound and limiter of the whole loss in bfloat16 by its machine code, and its buffers."""
    path = RESULTS / f"roofline-{AIMED_AT}.json"
    report = load_report(path) if path.is_file() else Report()
    case = KernelCase("dogo_loss", "bfloat16", MIDDLE, N, "static")
    kernels = [each for each in report.predictions if each.case == case and each.kernel in PASSES]
    buffers = [each.bytes for each in report.buffers if each.case == case]
    both = [found for each in kernels if (found := each.seconds(CLOCK)) is not None]
    if len(both) != len(PASSES) or not buffers:
        return MISSING
    times = [sum(values) for values in zip(*both, strict=True)]
    least = sum(each.clocks_needed or 0.0 for each in kernels) * N**2 / (MULTIPROCESSORS[AIMED_AT] * CLOCK)
    limiters = dict.fromkeys(each.limiter for each in kernels)
    return ", ".join(
        [
            " to ".join(number(1e6 * time) for time in times) + " µs",
            " to ".join(f"{100 * least / time:.0f}" for time in times) + " % of the bound",
            "limited by " + " and ".join(NAMED.get(limiter, limiter) for limiter in limiters),
            f"{number(buffers[0] / 2**20)} MiB",
        ]
    )


def _stepped(info: StepInfo) -> str:
    idle = "GPU idle unknown" if info.gpu_idle_share is None else f"GPU idle {100 * info.gpu_idle_share:.1f} %"
    views = f"views {100 * info.phase_shares['augmentation'][1]:.1f} %"
    return f"{number(info.per_second['ours'].median)} images/s, {idle}, {views}"


def _reached(info: LossInfo) -> str:
    others = [
        f"{number(info.faster_than[name].both.median, 2)} × {name}"
        if name in info.faster_than
        else f"{name}: {info.missing.get(name, 'not run')}"
        for name in ("dense", "compile")
    ]
    time = f"{number(1e6 * info.seconds['ours'].both.median)} µs" + ("" if info.captured["ours"] else " in eager")
    percent = f"{tables.percents_of_bound(info)[2]:.0f} % of the bound"
    return ", ".join([time, *others, percent, f"{number(info.memory_bytes['ours'] / 2**20)} MiB"])


def _link(path: Path) -> str:
    return Path(os.path.relpath(path, PAGE.parent)).as_posix()


def _rate_lines(record: Record) -> list[str]:
    """Of the first loss of each device and dtype."""
    found: dict[tuple[str, str], Rates] = {}
    for info in record.of(LossInfo):
        found.setdefault((info.device, info.dtype), info.rates)
    rows = [
        [*key, number(rates.gemm / 1e12), number(rates.exp2 / 1e9), number(rates.copy_ / 1e9)]
        for key, rates in found.items()
    ]
    return table(["device", "dtype", "products, TFLOP/s", "exponentials, G/s", "copy, GB/s"], rows)


def _static_roofline(path: Path, report: Report) -> str:
    """What the machine code of the two large kernels allows, beside what the loss needs."""
    rows = [
        [
            f"{each.case.loss}, {each.case.variant}",
            each.case.dtype,
            str(each.case.D),
            str(each.case.N),
            each.kernel.removesuffix("_kernel"),
            f"{each.tile}, {each.warps} warps",
            str(each.registers),
            str(each.stack),
            each.limiter,
            f"{100 * each.share_in_turns:.0f} to {100 * each.share_overlapped:.0f}",
        ]
        for each in report.predictions
        if each.share_in_turns is not None and each.share_overlapped is not None
    ]
    head = ["loss", "dtype", "D", "N", "kernel", "tile", "registers", "spilled, B", "limiter", "% of the bound"]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if version)
    return f"""
## Predicted from the machine code: {report.predictions[0].target}

Compiled without a GPU; the instructions of the loops are counted, and the architecture's published
throughputs turn them into clocks. A prediction, not a measurement: latencies, waits and memory are left
out. The first percentage is for products and everything else in turns, the second for all pipes busy at
the same time. {versions}; [everything that was counted]({_link(path.with_suffix(".txt"))}).

""" + "\n".join([*table(head, rows), ""])


def _noise(path: Path) -> str:
    """How far ratios wander between runs of the same code."""
    noise = check.load_noise(path)
    rows = [
        [name, number(middle), f"{number(low)}–{number(high)}", f"{100 * (middle / low - 1):.0f}"]
        for name, (low, middle, high) in noise.bands().items()
    ]
    return f"""
## What counts as slower: {noise.machine["name"]}

`make bench-check` measures these ratios again and fails below the band: {check.DEVIATIONS:g} standard
deviations of {noise.runs} runs of the same code, each ratio's own or the median of all, whichever is larger
([record]({_link(path)})).

""" + "\n".join([*table(["ratio", "middle", "band", "ours slower by more than, %"], rows), ""])


def readme_figures(records: Sequence[Record], drawn: Iterable[str]) -> str:
    """The two pictures, if they were drawn, five rows of the record they are of, and where ours is no faster.

    Args:
        records: those with times of a GPU first; the first one that has the whole loss is shown.
        drawn: names of the pictures there are.
    """
    record = next((each for each in records if each.of(LossInfo, loss="dogo_loss", device=each.device)), records[0])
    name = record.path.stem.removeprefix("benchmark-")
    pictures = {f"{what}-{name}.svg": title for what, title in plots.TITLES.items()}
    lines = [f"![{title}](docs/plots/{file})" for file, title in pictures.items() if file in drawn]
    lines += [""] if lines else []
    lines += [
        f"{record.name}, {record.machine.threads} threads; `make bench`, [record]({record.path.relative_to(ROOT)}).",
        "",
    ]
    lines += [
        *table([f"both passes, D = {MIDDLE}", "ours", "how many times as long others take"], _figures(record)),
        "",
    ]
    lines += textwrap.wrap(_slower(records), WIDTH)
    if not any(record.device == "cuda" for record in records):
        lines += ["", *textwrap.wrap(UNMEASURED.format(foreseen=_foreseen(4096)), WIDTH)]
    return "\n".join(lines)


SHOWN = ((256, "float32"), (4096, "float32"), (4096, "bfloat16"))
"""N and dtypes of the whole loss in README.md."""
LEFT_OUT = ("metric-learning",)
"""For want of room; the page has it."""


def _figures(record: Record) -> list[list[str]]:
    rows = []
    for N, dtype in SHOWN:
        for info in record.of(LossInfo, loss="dogo_loss", device=record.device, D=MIDDLE, N=N, dtype=dtype):
            ours = (
                f"{number(1e3 * info.seconds['ours'].both.median)} ms, {number(info.memory_bytes['ours'] / 2**20)} MiB"
            )
            ratios = {name: phases.both.median for name, phases in info.faster_than.items() if name not in LEFT_OUT}
            rows.append([f"whole loss, N = {N}, {dtype}", ours, _others(ratios)])
    for kind in (ViewsInfo, PretrainingInfo):
        for rated in record.of(kind, device=record.device)[:1]:
            ratios = {name: values.median for name, values in rated.faster_than.items()}
            what = str(rated).partition(", ")[2]
            rows.append(
                [f"{rated.kind}, {what}", f"{number(rated.per_second['ours'].median)} {rated.unit}", _others(ratios)]
            )
    return rows


def _others(ratios: dict[str, float]) -> str:
    return ", ".join(f"{name} {number(ratio, 2)}" for name, ratio in ratios.items())


def _slower(records: Sequence[Record]) -> str:
    """Where something else takes no longer than ours, on any machine and device that there is a record of."""
    found = []
    for record in records:
        for info in record.of(LossInfo):
            what = f"{tables.TITLES[info.loss]}, {info}, {PLACES[info.device]}"
            found += [(name, phases.both.median, what) for name, phases in info.faster_than.items()]
        for rated in record.of(RatedInfo):
            found += [(name, values.median, f"{rated.kind}: {rated}") for name, values in rated.faster_than.items()]
    slower = [f"{name} {number(ratio, 2)} ({what})" for name, ratio, what in found if ratio <= 1]
    if not slower:
        return "Nothing in the records takes less time than ours."
    return f"Where ours is no faster, as a part of our time: {'; '.join(slower)}."


def with_figures(readme: str, figures: str) -> str:
    """README.md with the figures between the marks.

    Raises:
        NotARecord: the marks are missing.
    """
    before, mark, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise NotARecord(f"{README} has no place for figures between {MARKS[0]} and {MARKS[1]}")
    return f"{before}{mark}\n\n{figures}\n\n{end}{after}"


def stale_plots(folder: Path, fresh: Path) -> list[Path]:
    """The pictures in a folder that are missing, superfluous or of other data than those in ``fresh``, drawn anew."""
    here, there = ({path.name: plots.data_digest(path) for path in each.glob("*.svg")} for each in (folder, fresh))
    return [folder / name for name in sorted({*here, *there}) if here.get(name) != there.get(name, "")]


def main(arguments: Sequence[str] | None = None) -> int:
    """0: written, or with --check the same as it is; 1: not the same; 2: no records."""
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.bench.reports.page")
    parser.add_argument("--check", action="store_true", help="write nothing; are texts and pictures as they would be?")
    options = parser.parse_args(arguments)
    try:
        records = recorded()
        if not records:
            raise NotARecord(f"no record in {RESULTS}: make one with make bench")
        with tempfile.TemporaryDirectory() as scratch:
            texts = {PAGE: write_page(records, Path(scratch))}
            drawn = os.listdir(scratch)
            texts[README] = with_figures(README.read_text(), readme_figures(records, drawn))
            stale = stale_plots(PLOTS, Path(scratch))
            if not options.check:
                shutil.rmtree(PLOTS, ignore_errors=True)
                shutil.copytree(scratch, PLOTS)
    except NotARecord as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.check:
        for path, text in texts.items():
            path.write_text(text)
        return 0
    stale += [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    if stale:
        names = ", ".join(os.path.relpath(path, ROOT) for path in stale)
        print(f"not as the records make it: {names}: run make page", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

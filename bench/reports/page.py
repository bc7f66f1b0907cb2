"""docs/performance.md, its pictures, the figures of README.md, from the recorded runs.

    python -m dogo_fast.bench.reports.page [--check]

Nothing on the page is typed by hand: page.md has its words, every number comes from a file in bench/results/.
"""

import argparse
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dogo_fast.ops.compiling import KernelCase

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
    Record,
    StepInfo,
    ViewsInfo,
    recorded,
)
from ..tables import MISSING, number, table
from . import plots
from .roofline import TARGET, Report, load_report

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).with_name("page.md")
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"
README = ROOT / "README.md"
MARKS = "<!-- figures: made by make page -->", "<!-- end of figures -->"
WIDTH = 118
"""Characters of a line of text."""

UNMEASURED = """\
**No time has been measured on a GPU yet**: the kernels were checked value by value in Triton's interpreter and
compiled for sm_80, sm_90, sm_100, sm_120 and gfx942, where the compiler's report chose the tiles; the captured step
and the views' kernel have not run on a GPU either. What the machine code says of an H200, counted and not run, of the
whole loss at N = 4096 in bfloat16: {foreseen}."""

OUTDATED = """\
**The times on a GPU are of earlier kernels**, which divided their work by rows. From N = 2048 on those for sm_90,
bfloat16, D <= 128 now divide it by squares, and `finalize_kernel` is no longer one program; neither has been timed in
this form. What the machine code says of an H200, counted and not run, of the whole loss at N = 4096 in bfloat16:
{foreseen}."""

AIMS = {
    256: "at most 25 µs a replay",
    4096: "8 × dense, 4 × torch.compile",
    32768: "20 × dense, 60 % of the bound",
    262144: "runs in under 2 GiB",
}
"""By N."""
AIM_OF_A_STEP = "15,000 images/s, GPU idle under 3 %, views under 3 % of an eager step"

NAMES = {"shared": "shared memory", "special": "exponentials", "tensor": "products"}
"""Of some pipes of a multiprocessor."""
SHOWN = {
    "cuda": ((256, "bfloat16"), (4096, "bfloat16"), (32768, "bfloat16")),
    "cpu": ((256, "float32"), (4096, "float32"), (4096, "bfloat16")),
}
"""N and dtypes of the whole loss in README.md."""
LEFT_OUT = ("metric-learning",)
"""For want of room; the page has it."""


def write_page(records: Sequence[Record], folder: Path) -> str:
    """The page's text; the pictures are written into the folder.

    Raises:
        NotARecord: the static roofline is missing or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    static = load_report(RESULTS / f"roofline-{TARGET}.json")
    return TEMPLATE.read_text().format(
        state=state(records, static),
        aims="\n".join(aims(static)),
        records="\n".join(_section(record, folder) for record in records),
        target=TARGET,
        versions=", ".join(f"{name} {version}" for name, version in static.versions.items() if version),
        predictions="\n".join(_predictions(static)),
    )


def state(records: Sequence[Record], static: Report) -> str:
    """What is to be said of GPUs while there is no record of one, or none of the present kernels."""
    infos = [info for record in records if record.device == "cuda" for info in record.of(LossInfo)]
    measured = {kernel.kernel for info in infos if info.kernels for kernel in info.kernels.kernels}
    if "finish_kernel" in measured:
        return ""
    text = OUTDATED if infos else UNMEASURED
    return textwrap.fill(text.format(foreseen=_foreseen(static, 4096)), WIDTH)


def _section(record: Record, folder: Path) -> str:
    """A record: its machine, pictures and tables."""
    about = [*record.head(), f"[record]({_link(record.path)})"]
    lines = ["", f"## {record.name}", "", *(f"{each}  " for each in about[:-1]), about[-1], ""]
    for what, path in plots.draw_all(record, folder).items():
        lines += [f"![{plots.TITLES[what]}](plots/{path.name})", ""]
    for title, found in tables.sections(record):
        lines += [f"### {title}", "", *found, ""]
    return "\n".join(lines[:-1])


def _link(path: Path) -> str:
    return Path(os.path.relpath(path, PAGE.parent)).as_posix()


def aims(static: Report) -> list[str]:
    """What is to be reached on a GPU beside what its machine code says."""
    rows = [[f"N = {N}", aim, _foreseen(static, N)] for N, aim in AIMS.items()]
    return table(["", "aim", "counted"], [*rows, ["step, two resnet18", AIM_OF_A_STEP, MISSING]])


def _foreseen(static: Report, N: int) -> str:
    """Percents of the bound and limiters of the whole loss in bfloat16 by its machine code, and its buffers."""
    case = KernelCase("dogo_loss", "bfloat16", MIDDLE, N, "static")
    kernels = [each for each in static.predictions if each.case == case and each.kernel in PASSES]
    buffers = [each.bytes for each in static.buffers if each.case == case]
    if len(kernels) != len(PASSES) or not all(each.shares for each in kernels) or not buffers:
        return MISSING
    needed, overlapped, in_turns = (
        sum(getattr(each, f"clocks_{name}") for each in kernels) for name in ("needed", "overlapped", "in_turns")
    )
    limiters = dict.fromkeys(each.limiter for each in kernels)
    return ", ".join(
        [
            f"{100 * needed / in_turns:.0f} to {100 * needed / overlapped:.0f} % of the bound",
            "limited by " + " and ".join(NAMES.get(limiter, limiter) for limiter in limiters),
            f"{number(buffers[0] / 2**20)} MiB",
        ]
    )


def _predictions(static: Report) -> list[str]:
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
            each.limiter + ", serialised" * each.serialised,
            " to ".join(f"{100 * share:.0f}" for share in reversed(each.shares)),
        ]
        for each in static.predictions
        if each.shares
    ]
    head = ["loss", "dtype", "D", "N", "kernel", "tile", "registers", "spilled, B", "limiter", "% of the bound"]
    return table(head, rows)


def readme_figures(records: Sequence[Record]) -> str:
    """The two pictures of the first record, five rows of each, where ours is no faster, and what is unmeasured."""
    pictures = [f"![{title}](docs/plots/{plots.file_name(what, records[0])})" for what, title in plots.TITLES.items()]
    parts = ["\n".join(pictures)]
    for record in records:
        gpu = record.device == "cuda"
        where = record.name if gpu else f"{record.name}, {record.machine.threads} threads"
        link = f"`make bench`, [record]({record.path.relative_to(ROOT)})"
        parts.append(f"{where}; {link}{'; * in eager, since no CUDA graph can hold it' * gpu}.")
        head = [f"both passes, D = {MIDDLE}", "ours", "how many times as long others take"]
        parts.append("\n".join(table(head, _rows(record))))
    parts.append(textwrap.fill(_slower(records), WIDTH))
    parts.append(state(records, load_report(RESULTS / f"roofline-{TARGET}.json")))
    return "\n\n".join(part for part in parts if part)


def _rows(record: Record) -> Iterator[list[str]]:
    for N, dtype in SHOWN[record.device]:
        for info in record.of(LossInfo, loss="dogo_loss", device=record.device, D=MIDDLE, N=N, dtype=dtype):
            time, memory = info.seconds["ours"].both.median, info.memory_bytes["ours"]
            ratios = {
                f"{name}{'' if info.captured[name] or record.device == 'cpu' else '*'}": phases.both.median
                for name, phases in info.faster_than.items()
                if name not in LEFT_OUT
            }
            ours = f"{number(1e3 * time)} ms, {number(memory / 2**20)} MiB"
            yield [f"whole loss, N = {N}, {dtype}", ours, _others(ratios)]
    for kind in (ViewsInfo, StepInfo, PretrainingInfo) if record.device == "cuda" else (ViewsInfo, PretrainingInfo):
        for rated in record.of(kind, device=record.device)[:1]:
            ratios = {name: values.median for name, values in rated.faster_than.items()}
            what = str(rated).removeprefix(f"{PLACES[rated.device]}, ")
            rate = f"{number(rated.per_second['ours'].median)} {rated.unit}"
            yield [f"{rated.kind}, {what}", rate, _others(ratios)]


def _others(ratios: Mapping[str, float]) -> str:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """0: written, or with --check the same as it is; 1: not the same; 2: no records.

    Of the pictures the names alone are checked: another version of matplotlib draws other bytes of the same record.
    """
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.bench.reports.page")
    parser.add_argument("--check", action="store_true", help="write nothing; is all as it would be?")
    options = parser.parse_args(arguments)
    try:
        records = recorded()
        if not records:
            raise NotARecord(f"no record in {RESULTS}: make one with make bench")
        with tempfile.TemporaryDirectory() as scratch:
            texts = {
                PAGE: write_page(records, Path(scratch)),
                README: with_figures(README.read_text(), readme_figures(records)),
            }
            drawn, there = ({path.name for path in each.glob("*.svg")} for each in (Path(scratch), PLOTS))
            stale = [PLOTS / name for name in sorted(drawn ^ there)]
            if not options.check:
                shutil.rmtree(PLOTS, ignore_errors=True)
                shutil.copytree(scratch, PLOTS)
    except NotARecord as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale += [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    if not options.check:
        for path, text in texts.items():
            path.write_text(text)
        return 0
    if stale:
        names = ", ".join(os.path.relpath(path, ROOT) for path in stale)
        print(f"not as the records make it: {names}: run make page", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

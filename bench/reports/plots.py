"""The pictures of docs/performance.md, as SVG: time and memory against N."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dogo_fast.reporting.plots import STYLE as COMMON

from ..contenders import CONTENDERS
from ..grid import MIDDLE
from ..records import LossInfo, Record

STYLE: Any = COMMON | {
    "svg.hashsalt": "dogo_fast",  # the same picture for the same record
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}
COLOURS = {
    "ours": "#c1121f",
    "dense": "#1d3557",
    "compile": "#457b9d",
    "lightly": "#6a994e",
    "metric-learning": "#b08968",
    "authors": "#7f7f7f",
}
LABELS = {"time": "forward and backward, ms", "memory": "memory above the inputs, MiB"}
TITLES = {
    "time": "Time of forward and backward against N, both axes logarithmic",
    "memory": "Memory of a pass above its inputs against N, both axes logarithmic",
}

Lines = dict[str, list[tuple[int, float]]]
"""By contender, its value at each N."""


def file_name(what: str, record: Record) -> str:
    return f"{what}-{record.path.stem.removeprefix('benchmark-')}.svg"


def draw_all(record: Record, folder: Path) -> dict[str, Path]:
    """Write the pictures of a record that has the whole loss; returns their paths by what they show."""
    infos = record.of(LossInfo, loss="dogo_loss", device=record.device, D=MIDDLE)
    dtypes = list(dict.fromkeys(info.dtype for info in infos))[:2]
    drawn = {}
    for what, label in LABELS.items() if dtypes else ():
        panels = {str(dtype): lines_of([info for info in infos if info.dtype == dtype], what) for dtype in dtypes}
        drawn[what] = folder / file_name(what, record)
        with matplotlib.rc_context(STYLE):
            draw(panels, label).savefig(drawn[what], format="svg", metadata={"Date": None}, bbox_inches="tight")
    return drawn


def lines_of(infos: list[LossInfo], what: str) -> Lines:
    out: Lines = {}
    for info in sorted(infos, key=lambda info: info.N):
        for name in ("ours", *CONTENDERS):
            if what == "time" and name in info.seconds:
                out.setdefault(name, []).append((info.N, 1e3 * info.seconds[name].both.median))
            elif what == "memory" and info.memory_bytes.get(name):
                out.setdefault(name, []).append((info.N, info.memory_bytes[name] / 2**20))
    return out


def draw(panels: dict[str, Lines], label: str) -> Figure:
    """A panel for each dtype, a line for each contender, both axes logarithmic."""
    figure = Figure(figsize=(4.2 * len(panels), 3.2))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (dtype, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            width = 2.4 if name == "ours" else 1.2
            panel.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], label=name, lw=width, ms=3 + width / 2)
        panel.set(xscale="log", yscale="log", xlabel="N (images a batch)", title=f"{dtype}, D = {MIDDLE}")
        sizes = sorted({N for points in lines.values() for N, _ in points})
        panel.set_xticks(sizes, [str(N) for N in sizes], minor=False)
        panel.minorticks_off()
    axes[0].set_ylabel(label)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure

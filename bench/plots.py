"""The pictures of docs/performance.md, as SVG: time and memory against N, percent of the bound, rates."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .contenders import CONTENDERS
from .grid import MIDDLE
from .records import Record
from .tables import describe

STYLE = {
    "svg.hashsalt": "dogo_fast",  # the same picture for the same record
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
COLOURS = {
    "ours": "#c1121f",
    "dense": "#1d3557",
    "compile": "#457b9d",
    "max-autotune": "#8ab6d6",
    "lightly": "#6a994e",
    "metric-learning": "#b08968",
    "authors": "#7f7f7f",
    "liger": "#9d4edd",
    "torchvision": "#6a994e",
    "kornia": "#b08968",
    "eager": "#457b9d",
}


def draw_all(record: Record, folder: Path) -> list[Path]:
    """Write the pictures of a record; returns their paths. Those it has nothing for are left out."""
    drawn = []
    dtypes = list(dict.fromkeys(info["dtype"] for info in record.of("loss", "dogo_loss", record.device)))
    with matplotlib.rc_context(STYLE):
        for name, draw in (("time", _times), ("memory", _memory), ("bound", _bound), ("rates", _rates)):
            figure = draw(record, dtypes[:2])
            if figure is not None:
                path = folder / f"{name}-{record.path.stem.removeprefix('benchmark-')}.svg"
                figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
                drawn.append(path)
    return drawn


def _against_n(
    record: Record,
    dtypes: list[str],
    label: str,
    value: Callable[[dict[str, Any], str], float | None],
) -> Figure | None:
    """A panel for each dtype, a line for each contender, both axes logarithmic."""
    if not dtypes:
        return None
    figure = Figure(figsize=(4.2 * len(dtypes), 3.2))
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        infos = sorted(
            (
                info
                for info in record.of("loss", "dogo_loss", record.device)
                if info["dtype"] == dtype and info["D"] == MIDDLE
            ),
            key=lambda info: int(info["N"]),
        )
        for name in ("ours", *CONTENDERS):
            points = [(info["N"], found) for info in infos if (found := value(info, name)) is not None]
            if points:
                width = 2.4 if name == "ours" else 1.2
                panel.plot(
                    *zip(*points, strict=True), "o-", color=COLOURS[name], label=name, lw=width, ms=3 + width / 2
                )
        panel.set(xscale="log", yscale="log", xlabel="N (images a batch)", title=f"{dtype}, D = {MIDDLE}")
        sizes = [info["N"] for info in infos]
        panel.set_xticks(sizes, [str(N) for N in sizes], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel(label)
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _times(record: Record, dtypes: list[str]) -> Figure | None:
    def milliseconds(info: dict[str, Any], name: str) -> float | None:
        phases = info["seconds"].get(name)
        return None if phases is None else 1e3 * phases["both"][1]

    return _against_n(record, dtypes, "forward and backward, ms", milliseconds)


def _memory(record: Record, dtypes: list[str]) -> Figure | None:
    def mebibytes(info: dict[str, Any], name: str) -> float | None:
        taken = info["memory_bytes"].get(name)
        return taken / 2**20 if taken else None

    return _against_n(record, dtypes, "memory above the inputs, MiB", mebibytes)


def _bound(record: Record, dtypes: list[str]) -> Figure | None:
    infos = list(record.of("loss", device=record.device))
    if not infos:
        return None
    figure = Figure(figsize=(6.4, 0.22 * len(infos) + 0.9))
    labels = [f"{info['loss']}, {info['dtype']}, N = {info['N']}, D = {info['D']}" for info in infos]
    panel = figure.subplots()
    _bars(panel, labels, [info["roofline"]["percent"] for info in infos], COLOURS["ours"])
    panel.set(xlabel="% of the bound: counted work at the rates measured in the run", xlim=(0, 100))
    return figure


def _rates(record: Record, dtypes: list[str]) -> Figure | None:
    infos = [info for kind in ("views", "step", "pretraining") for info in record.of(kind)]
    if not infos:
        return None
    figure = Figure(figsize=(6.4, 0.2 * sum(len(info["per_second"]) for info in infos) + 0.2 * len(infos) + 0.8))
    panel = figure.subplots()
    place, ticks, labels = 0.0, [], []
    for info in infos:
        for name, values in info["per_second"].items():
            panel.barh(place, values[1], height=0.8, color=COLOURS[name])
            ticks.append(place)
            labels.append(f"{describe(info)}: {name}")
            place += 1
        place += 0.6
    panel.set_yticks(ticks, labels)
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="views (views) or images (steps, pretraining) a second")
    panel.grid(axis="y", visible=False)
    return figure


def _bars(panel: Axes, labels: list[str], values: Iterable[float], colour: str) -> None:
    panel.barh(labels, list(values), height=0.7, color=colour)
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)

"""The pictures of docs/performance.md, as SVG: time and memory against N, percent of the bound, rates.

The same record gives the same bytes, but only with the same matplotlib: its version stands in the file, and how wide it
holds a text decides the layout. So a picture carries two digests as its identifier, which tell without drawing it alike
whether it is the picture of a record: that of what is drawn, numbers and labels, and that of the file itself, which
shows that nobody changed it since. Colours and sizes are in neither.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..contenders import CONTENDERS
from ..grid import MIDDLE
from ..records import Record
from ..tables import describe

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

OTHER = "#000000"

IDENTIFIER = "data {}, drawing {}"
UNSEALED = IDENTIFIER.format(64 * "0", 64 * "0")

Picture = tuple[Figure, list[Any]]
"""And what is drawn in it, as JSON can hold it."""


def draw_all(record: Record, folder: Path) -> list[Path]:
    """Write the pictures of a record; returns their paths. Those it has nothing for are left out."""
    drawn = []
    dtypes = list(dict.fromkeys(info["dtype"] for info in record.of("loss", "dogo_loss", record.device)))
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs want each key by its own name
        for name, draw in (("time", _times), ("memory", _memory), ("bound", _bound), ("rates", _rates)):
            picture = draw(record, dtypes[:2])
            if picture is not None:
                path = folder / f"{name}-{record.path.stem.removeprefix('benchmark-')}.svg"
                path.write_bytes(_sealed(*picture))
                drawn.append(path)
    return drawn


def _sealed(figure: Figure, data: list[Any]) -> bytes:
    """The SVG, with the digests of what is drawn and of itself before it had them."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Identifier": UNSEALED}, bbox_inches="tight")
    text = file.getvalue()
    drawn = hashlib.sha256(json.dumps(data).encode()).hexdigest()
    return text.replace(UNSEALED.encode(), IDENTIFIER.format(drawn, hashlib.sha256(text).hexdigest()).encode(), 1)


def data_digest(svg: bytes) -> str | None:
    """The digest of what is drawn in a picture of ``draw_all``; None in one that is not or that was changed since."""
    found = re.search(IDENTIFIER.format("([0-9a-f]{64})", "([0-9a-f]{64})").encode(), svg)
    if found is None:
        return None
    unsealed = svg[: found.start()] + UNSEALED.encode() + svg[found.end() :]
    return found[1].decode() if hashlib.sha256(unsealed).hexdigest() == found[2].decode() else None


def _against_n(
    record: Record,
    dtypes: list[str],
    label: str,
    value: Callable[[dict[str, Any], str], float | None],
) -> Picture | None:
    """A panel for each dtype, a line for each contender, both axes logarithmic."""
    if not dtypes:
        return None
    figure = Figure(figsize=(4.2 * len(dtypes), 3.2))
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    data: list[Any] = [label]
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
                data.append([dtype, name, points])
                width = 2.4 if name == "ours" else 1.2
                panel.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=COLOURS.get(name, OTHER),
                    label=name,
                    lw=width,
                    ms=3 + width / 2,
                )
        panel.set(xscale="log", yscale="log", xlabel="N (images a batch)", title=f"{dtype}, D = {MIDDLE}")
        sizes = [info["N"] for info in infos]
        panel.set_xticks(sizes, [str(N) for N in sizes], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel(label)
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, data


def _times(record: Record, dtypes: list[str]) -> Picture | None:
    def milliseconds(info: dict[str, Any], name: str) -> float | None:
        phases = info["seconds"].get(name)
        return None if phases is None else 1e3 * phases["both"][1]

    return _against_n(record, dtypes, "forward and backward, ms", milliseconds)


def _memory(record: Record, dtypes: list[str]) -> Picture | None:
    def mebibytes(info: dict[str, Any], name: str) -> float | None:
        taken = info["memory_bytes"].get(name)
        return taken / 2**20 if taken else None

    return _against_n(record, dtypes, "memory above the inputs, MiB", mebibytes)


def _bound(record: Record, dtypes: list[str]) -> Picture | None:
    infos = list(record.of("loss", device=record.device))
    if not infos:
        return None
    figure = Figure(figsize=(6.4, 0.22 * len(infos) + 0.9))
    labels = [f"{info['loss']}, {info['dtype']}, N = {info['N']}, D = {info['D']}" for info in infos]
    panel = figure.subplots()
    percents = [info["roofline"]["percent"] for info in infos]
    _bars(panel, labels, percents, COLOURS["ours"])
    panel.set(xlabel="% of the bound: counted work at the rates measured in the run", xlim=(0, 100))
    return figure, [labels, percents]


def _rates(record: Record, dtypes: list[str]) -> Picture | None:
    infos = [info for kind in ("views", "step", "pretraining") for info in record.of(kind)]
    if not infos:
        return None
    figure = Figure(figsize=(6.4, 0.2 * sum(len(info["per_second"]) for info in infos) + 0.2 * len(infos) + 0.8))
    panel = figure.subplots()
    place, ticks, labels, rates = 0.0, [], [], []
    for info in infos:
        for name, values in info["per_second"].items():
            panel.barh(place, values[1], height=0.8, color=COLOURS.get(name, OTHER))
            ticks.append(place)
            labels.append(f"{describe(info)}: {name}")
            rates.append(values[1])
            place += 1
        place += 0.6
    panel.set_yticks(ticks, labels)
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="views (views) or images (steps, pretraining) a second")
    panel.grid(axis="y", visible=False)
    return figure, [labels, rates]


def _bars(panel: Axes, labels: list[str], values: Iterable[float], colour: str) -> None:
    panel.barh(labels, list(values), height=0.7, color=colour)
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)

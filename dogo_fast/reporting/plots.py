"""Pictures of runs, by matplotlib: curves, gains, features and similarity matrices."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dogo_fast.reporting.comparison import Comparison

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 110,
}
POINTS = 1000
"""Most images whose features are drawn."""

Curves = Mapping[str, Mapping[str, Sequence[float]]]
"""By panel, by line, a number an epoch."""


def _panels(count: int, columns: int = 3, size: tuple[float, float] = (4.2, 3.0)) -> tuple[Figure, list[Any]]:
    """A figure and as many axes."""
    wide = min(count, columns)
    high = -(-count // wide)
    figure = Figure(figsize=(size[0] * wide, size[1] * high), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Software": None})
    return path


def _colours(labels: Sequence[str]) -> dict[str, Any]:
    """The same for a label in every panel."""
    return {label: matplotlib.colormaps["tab10"](place % 10) for place, label in enumerate(dict.fromkeys(labels))}


def draw_curves(panels: Curves, path: Path) -> Path:
    """A panel a measure, over epochs; what was not measured in an epoch is passed over."""
    colours = _colours([label for lines in panels.values() for label in lines])
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(panels))
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for label, values in lines.items():
                known = [(epoch, value) for epoch, value in enumerate(values, 1) if not math.isnan(value)]
                marks: Any = {"marker": "o" if len(known) < 20 else None, "ms": 3}
                if known:
                    axis.plot(*zip(*known, strict=True), color=colours[label], label=label, **marks)
            axis.set(title=title, xlabel="epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            if len(colours) > 1:
                axis.legend()
        return _save(figure, path)


def draw_gains(comparison: Comparison, prefix: str, label: str, path: Path) -> Path | None:
    """Gains over the baseline against the number at the end of a score's name, with their intervals; a panel a peer.
    None where there are none."""
    colours = _colours(list(comparison.arms))
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(comparison.peers))
        drawn = False
        for number, (axis, name) in enumerate(zip(axes, comparison.peers, strict=True), 1):
            for arm in comparison.arms:
                points = []
                for (peer, score), cells in comparison.rows.items():
                    end = score.removeprefix(prefix)
                    if peer == number and score != end and arm in cells and cells[arm].gain is not None:
                        points.append((float(end), 100 * (cells[arm].gain or 0), 100 * (cells[arm].half_width or 0)))
                if points:
                    drawn = True
                    x, y, error = zip(*sorted(points), strict=True)
                    axis.errorbar(x, y, error, color=colours[arm], label=arm, marker="o", ms=3, capsize=3)
            axis.axhline(0, color="#888888", lw=0.8)
            axis.set(title=f"peer {number} ({name})", xlabel=label, ylabel=f"points over {comparison.baseline}")
            if axis.get_legend_handles_labels()[0]:
                axis.legend()
        return _save(figure, path) if drawn else None


def draw_features(
    features: Mapping[str, Tensor],
    labels: Tensor,
    class_names: Sequence[str],
    path: Path,
    method: str = "pca",
    columns: int = 3,
) -> Path:
    """A panel for each network: its features [N, F] in the plane, coloured by their labels [N].

    Args:
        features: by title.
        labels: int64 [N].
        class_names: of the labels.
        path: where to save it.
        method: ``"pca"``, the two principal components of the normalised features, or ``"tsne"``.
        columns: panels beside each other.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _panels(len(features), columns, (4.0, 3.8))
        for axis, (title, rows) in zip(axes, features.items(), strict=True):
            unit = torch.nn.functional.normalize(rows[:POINTS].double(), dim=1).cpu().numpy()
            if method == "tsne":
                flat = TSNE(perplexity=min(30, (len(unit) - 1) // 3), init="pca", random_state=0).fit_transform(unit)
            else:
                flat = PCA(2, random_state=0).fit_transform(unit)
            for place, label in enumerate(labels[:POINTS].unique().tolist()):
                own = (labels[:POINTS] == label).cpu().numpy()
                name = class_names[label] if 0 <= label < len(class_names) else str(label)
                axis.scatter(*flat[own].T, s=4, color=matplotlib.colormaps["tab10"](place % 10), label=name)
            axis.set(title=title, xticks=[], yticks=[])
        if len(labels.unique()) <= 20:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", markerscale=3)
        return _save(figure, path)


def draw_similarities(cosines: Mapping[str, Tensor], labels: Tensor, path: Path, columns: int = 3) -> Path:
    """A panel for each network: cosines [N, N] between the projections of two views of N images, sorted by label."""
    order = labels.argsort(stable=True).cpu()
    edges = np.flatnonzero(np.diff(labels.cpu()[order].numpy())) + 0.5
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _panels(len(cosines), columns, (3.6, 3.2))
        for axis, (title, matrix) in zip(axes, cosines.items(), strict=True):
            shown = axis.imshow(matrix.float().cpu()[order][:, order].numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
            for edge in edges:
                axis.axhline(edge, color="black", lw=0.3)
                axis.axvline(edge, color="black", lw=0.3)
            axis.set(title=title, xlabel="view b", ylabel="view a", xticks=[], yticks=[])
        figure.colorbar(shown, ax=axes, label="cosine")
        return _save(figure, path)

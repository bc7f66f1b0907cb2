"""``dogo-fast compare``: runs side by side, as a table in three formats and as pictures."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dogo_fast.atomic import write_atomically
from dogo_fast.commands.options import Options, Positional, parse
from dogo_fast.errors import UserError
from dogo_fast.reporting.comparison import Comparison, Run, as_csv, as_records, compare, markdown, read_run
from dogo_fast.training.config import Metavar

GAINS = {
    "noise-symmetric-": ("noise", "wrong labels, symmetric, %"),
    "labels-": ("labels", "labels given, % of each class"),
}
"""Scores by the beginning of their names: the picture's name, and what the number at their end is."""


class CompareConfig(Options):
    """What is compared, and where to."""

    run: Annotated[tuple[Path, ...], Positional("RUN")] = ()
    """Run folders that `dogo-fast evaluate` has scored, or records of an experiment; those that differ in the seed
    alone are one arm."""
    out: Annotated[Path, Metavar("DIR")] = Path("comparison")
    """Folder for comparison.md, .csv, .json and the pictures."""
    baseline: Annotated[str | None, Metavar("ARM")] = None
    """Gains are over this arm, named as in the table or by the beginning of that (default: the one without
    distillation)."""
    features: Literal["none", "pca", "tsne"] = "none"
    """Draw the features of test images in the plane, of the first seed's run folders; the data set is read for it."""
    images: int = Field(1000, ge=10, le=10_000)
    """Test images whose features are drawn."""


def read(words: Sequence[str], summary: str) -> Callable[[], None]:
    """Comparing, and printing the tables."""
    config = parse("compare", words, CompareConfig, summary)
    if len(config.run) < 2:
        raise UserError(f"RUN must be two run folders or more, got {len(config.run)}")
    return lambda: run(config)


def run(config: CompareConfig) -> None:
    """Raises UserError for runs that cannot be read or compared, or a folder that cannot be written."""
    comparisons = compare([read_run(path) for path in dict.fromkeys(config.run)], config.baseline)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`out` must be a folder that can be made here, got {config.out} ({error.strerror})") from None
    parts = ["# Comparison\n"]
    for comparison in comparisons:
        pictures = draw(comparison, config)
        parts += [describe(comparison), *(f"![{path.stem}]({path.name})" for path in pictures)]
    text = "\n\n".join(parts) + "\n"
    write_atomically(config.out / "comparison.md", text.encode())
    write_atomically(config.out / "comparison.csv", as_csv(comparisons).encode())
    content = json.dumps(as_records(comparisons), indent=1) + "\n"
    write_atomically(config.out / "comparison.json", content.encode())
    print("\n\n".join(describe(comparison) for comparison in comparisons))
    print(f"\ntables and pictures in {config.out}")


def describe(comparison: Comparison) -> str:
    """A heading, what the arms are of, and the table."""
    seeds = {label: sorted(run.seed for run in runs) for label, runs in comparison.arms.items()}
    lines = [f"- {label}: seeds {', '.join(map(str, each))}" for label, each in seeds.items()]
    return (
        f"## Peers {', '.join(comparison.peers)}\n\n"
        + "\n".join(lines)
        + "\n\nTest accuracy in %, mean ± standard deviation over seeds; in brackets the gain over "
        + f"{comparison.baseline} with the half width of its 95 % interval, of differences between runs of the same "
        "seed.\n\n" + markdown(comparison)
    )


def draw(comparison: Comparison, config: CompareConfig) -> list[Path]:
    """The pictures of a comparison; those that can be drawn of what the runs have."""
    from dogo_fast.reporting import plots

    prefix = "-".join(comparison.peers).replace(":", "-")
    drawn = [plots.draw_curves(_curves(comparison), config.out / f"{prefix}-curves.png")]
    for beginning, (name, label) in GAINS.items():
        path = plots.draw_gains(comparison, beginning, label, config.out / f"{prefix}-{name}.png")
        drawn += [path] if path else []
    folders = {label: runs[0] for label, runs in comparison.arms.items() if runs[0].path.is_dir()}
    if config.features != "none":
        if len(folders) < len(comparison.arms):
            raise UserError("`features` needs run folders, with their weights; records have none")
        drawn += _draw_networks(folders, config, prefix)
    return drawn


def _curves(comparison: Comparison) -> dict[str, dict[str, list[float]]]:
    """Of each measure that all runs of an arm have, the mean over them."""
    names = dict.fromkeys(name for runs in comparison.arms.values() for run in runs for name in run.history)
    wanted = [name for name in names if name == "loss" or name.startswith(("knn_", "nt_xent_", "simsiam_", "kl_"))]
    return {
        name: {
            label: [statistics.fmean(values) for values in zip(*(run.history[name] for run in runs), strict=False)]
            for label, runs in comparison.arms.items()
            if all(name in run.history for run in runs)
        }
        for name in wanted
    }


def _draw_networks(folders: dict[str, Run], config: CompareConfig, prefix: str) -> list[Path]:
    """Features and similarity matrices of the same test images, of each arm and peer."""
    from dogo_fast.reporting import plots
    from dogo_fast.reporting.report import look_at

    seen = {label: look_at(run.path, config.images) for label, run in folders.items()}
    first = next(iter(seen.values()))
    features = {f"{label}, peer {n}": rows for label, each in seen.items() for n, rows in enumerate(each.features, 1)}
    cosines = {f"{label}, peer {n}": rows for label, each in seen.items() for n, rows in enumerate(each.cosines, 1)}
    wide = len(first.features)
    path = config.out / f"{prefix}-similarities.png"
    return [
        plots.draw_features(
            features, first.labels, first.class_names, config.out / f"{prefix}-features.png", config.features, wide
        ),
        plots.draw_similarities(cosines, first.labels[: len(first.cosines[0])], path, wide),
    ]

"""Runs side by side: which belong together, what each arm scores, and what it gains over the baseline.

Runs that differ in nothing but the seed are an arm. A gain is the mean of the differences between runs of the same seed
(they share initial weights, order, views and draws of labels where the settings allow), and its interval the 95 % one
of Student's t for these differences: half width t(0.975, n − 1) · s / √n. One seed decides nothing and has no interval.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dogo_fast.errors import UserError
from dogo_fast.training.config import FREE_ON_RESUME

CONFIDENCE = 0.95
SCORES = "evaluation.json"
IRRELEVANT = FREE_ON_RESUME | {"seed", "precision", "residence"}
"""Settings that do not set arms apart."""

Scores = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Run:
    """What a run has left.

    Attributes:
        path: its folder, or its record.
        arm: what it is called; "" where its settings say it.
        settings: fields of ``PretrainConfig``.
        peers: names of the backbones.
        scores: of each peer, by name the accuracies of its seeds of evaluation, 0 … 1.
        history: columns of metrics by name, a number an epoch.
    """

    path: Path
    arm: str
    settings: Mapping[str, Any]
    peers: tuple[str, ...]
    scores: tuple[Scores, ...]
    history: Mapping[str, Sequence[float]]

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))


class Cell(NamedTuple):
    """A score of an arm: the mean and the standard deviation over its runs (None for one), how many those are, the gain
    over the baseline, and the half width of its interval (None where it has none)."""

    mean: float
    deviation: float | None
    runs: int
    gain: float | None
    half_width: float | None


@dataclass(frozen=True)
class Comparison:
    """Arms of the same peers.

    Attributes:
        peers: names of the backbones.
        arms: by label, its runs.
        baseline: the label of one of them.
        rows: by peer, from 1, and score, by label a cell.
    """

    peers: tuple[str, ...]
    arms: Mapping[str, Sequence[Run]]
    baseline: str
    rows: Mapping[tuple[int, str], Mapping[str, Cell]]


def read_run(path: Path) -> Run:
    """A run folder with ``evaluation.json`` (``dogo-fast evaluate`` writes it) or ``results.json``, or an experiment's
    record.

    Raises:
        UserError: neither, or a damaged one.
    """
    record = path if path.is_file() else path / "config.json"
    try:
        content = json.loads(record.read_bytes())
        settings = content["config"]
        peers = tuple(map(str, settings["peers"]))
        if path.is_dir():
            found = _scores_of(path, len(peers))
            return Run(path, "", settings, peers, found, _history_of(path / "metrics.csv"))
        found = tuple(content[f"peer_{number}"]["scores"] for number in range(1, len(peers) + 1))
        return Run(path, content["cell"]["arm"], settings, peers, found, {"loss": content["losses"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"RUN must be a run folder with scores (dogo-fast evaluate), or an experiment's record, got {path} "
            f"({type(error).__name__}: {error})"
        ) from None


def _scores_of(folder: Path, peers: int) -> tuple[Scores, ...]:
    """Of ``evaluation.json``; where there is none, the two of ``results.json``."""
    if (folder / SCORES).is_file():
        content = json.loads((folder / SCORES).read_bytes())
        return tuple(content.get(f"peer_{number}", {"scores": {}})["scores"] for number in range(1, peers + 1))
    content = json.loads((folder / "results.json").read_bytes())
    trained = [content[f"peer_{number}"]["trained"] for number in range(1, peers + 1)]
    return tuple({name: [value] for name, value in each.items()} for each in trained)


def _history_of(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else {})}


def compare(runs: Sequence[Run], baseline: str | None = None) -> list[Comparison]:
    """A comparison for each tuple of peers that the runs have.

    Args:
        runs: as ``read_run`` gives them.
        baseline: the arm's label, or the beginning of it; None for that without distillation.

    Raises:
        UserError: runs on different data sets, two runs of an arm with one seed, no baseline of that name, or several.
    """
    data = dict.fromkeys(str(run.settings.get("data")) for run in runs)
    if len(data) > 1:
        raise UserError(f"runs that are compared must be on one data set, got {', '.join(data)}")
    labels = _labels(runs)
    found = []
    for peers in dict.fromkeys(run.peers for run in runs):
        arms: dict[str, list[Run]] = {}
        for run in runs:
            if run.peers == peers:
                arms.setdefault(labels[run.path], []).append(run)
        for label, members in arms.items():
            seeds = [run.seed for run in members]
            if len(set(seeds)) < len(seeds):
                same = ", ".join(str(run.path) for run in members if seeds.count(run.seed) > 1)
                raise UserError(f"runs of one arm must have different seeds, got several of {label}: {same}")
        chosen = _baseline(arms, baseline)
        found.append(Comparison(peers, arms, chosen, _rows(peers, arms, chosen)))
    return found


def _labels(runs: Sequence[Run]) -> dict[Path, str]:
    """What sets a run apart from the others of its peers, in words."""
    labels = {}
    for run in runs:
        beside = [other for other in runs if other.peers == run.peers]
        keys = sorted({key for each in beside for key in each.settings if key not in IRRELEVANT})
        apart = [key for key in keys if len({json.dumps(each.settings.get(key)) for each in beside}) > 1]
        words = [f"{key} {_shown(run.settings.get(key))}" for key in apart]
        labels[run.path] = run.arm or ", ".join(words) or "all"
    return labels


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(dict.fromkeys(map(_shown, value)))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _baseline(arms: Mapping[str, Sequence[Run]], wanted: str | None) -> str:
    if wanted is not None:
        fitting = [label for label in arms if label == wanted] or [label for label in arms if label.startswith(wanted)]
    else:
        fitting = [label for label, runs in arms.items() if not any(runs[0].settings.get("kd_weight", (1,)))]
    if len(fitting) != 1:
        which = "a `kd_weight` of 0" if wanted is None else f"the name {wanted!r}"
        raise UserError(f"`baseline` must name one arm of {'; '.join(arms)}: {len(fitting)} of them have {which}")
    return fitting[0]


def _rows(
    peers: tuple[str, ...], arms: Mapping[str, Sequence[Run]], baseline: str
) -> dict[tuple[int, str], dict[str, Cell]]:
    rows: dict[tuple[int, str], dict[str, Cell]] = {}
    for number in range(len(peers)):
        names = dict.fromkeys(name for runs in arms.values() for run in runs for name in run.scores[number])
        for name in names:
            of_arms = {label: _by_seed(runs, number, name) for label, runs in arms.items()}
            rows[number + 1, name] = {
                label: _cell(values, None if label == baseline else of_arms[baseline])
                for label, values in of_arms.items()
                if values
            }
    return rows


def _by_seed(runs: Sequence[Run], peer: int, name: str) -> dict[int, float]:
    """Of each run that has the score, the mean over its seeds of evaluation."""
    return {run.seed: statistics.fmean(run.scores[peer][name]) for run in runs if name in run.scores[peer]}


def _cell(values: Mapping[int, float], baseline: Mapping[int, float] | None) -> Cell:
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    gain = half = None
    if baseline is not None:
        differences = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
        if differences:
            gain, half = statistics.fmean(differences), half_width(differences)
    return Cell(statistics.fmean(values.values()), spread, len(values), gain, half)


def half_width(differences: Sequence[float]) -> float | None:
    """Of the 95 % interval of their mean; None for one alone."""
    from scipy.stats import t  # comes with scikit-learn

    count = len(differences)
    if count < 2:
        return None
    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)


def markdown(comparison: Comparison, names: Sequence[str] | None = None) -> str:
    """The table: a line a peer and score, in percent, mean ± standard deviation (gain, its interval)."""
    arms = [comparison.baseline, *(label for label in comparison.arms if label != comparison.baseline)]
    lines = [f"| peer | score | {' | '.join(arms)} |", f"|---|---|{'---:|' * len(arms)}"]
    for (peer, name), cells in comparison.rows.items():
        if (names is None and name.startswith("corruption-")) or (names is not None and name not in names):
            continue
        shown = [_show(cells[label]) if label in cells else "" for label in arms]
        lines.append(f"| {peer} ({comparison.peers[peer - 1]}) | {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _show(cell: Cell) -> str:
    spread = "" if cell.deviation is None else f" ± {100 * cell.deviation:.1f}"
    text = f"{100 * cell.mean:.1f}{spread}"
    if cell.gain is not None:
        text += f" ({100 * cell.gain:+.1f}{'' if cell.half_width is None else f' ± {100 * cell.half_width:.1f}'})"
    return text


def as_records(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A dictionary a cell, for CSV and JSON; accuracies and gains from 0 to 1."""
    return [
        {
            "peers": ",".join(comparison.peers),
            "peer": peer,
            "score": name,
            "arm": label,
            "baseline": comparison.baseline,
            **cell._asdict(),
        }
        for comparison in comparisons
        for (peer, name), cells in comparison.rows.items()
        for label, cell in cells.items()
    ]


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One line a cell."""
    records = as_records(comparisons)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()

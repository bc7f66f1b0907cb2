"""Does distillation make the small peer better, and where: peers alone against the same peers with DoGo.

    python experiments/dogo_vs_simclr.py --preset cpu --data-dir DIR --transfer digits torchvision:FashionMNIST=DIR
    python experiments/dogo_vs_simclr.py --preset cpu --page docs/results.md        # the page, of the records alone

Two stages. ``choose`` trains on nine tenths of the training images and scores on the tenth held out, with a seed
of its own: the peers alone at several temperatures; DoGo at each of them with several weights; then, at the best of
those, other temperatures of the distillation and a weight that rises over half the run. No test image is looked at.
``main`` trains on all training images, with three seeds, and asks everything of the features on the complete test
splits: peers alone at the usual temperature and at the one that was chosen for them, DoGo as chosen, the authors'
recipe, and DoGo with shared views. Arms share seeds: initial weights, order, views and draws of labels are the same, so
that differences are paired.

A cell is one run. Its record, RECORDS/NAME.json, holds configuration, scores, seconds, versions, machine and commit. A
cell that has its record is skipped, one that was stopped goes on from its checkpoint, several copies of this program
share the work, on one GPU or on several. ``--minutes`` begins no cell later than that; SIGTERM ends one in its middle.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from dogo_fast import __version__
from dogo_fast.atomic import write_atomically
from dogo_fast.commands.compare import GAINS, describe
from dogo_fast.data import DataSet, load_data_set
from dogo_fast.errors import RunInterrupted
from dogo_fast.evaluation import KINDS, Suite
from dogo_fast.locks import locked
from dogo_fast.measuring import commit, device_name
from dogo_fast.reporting.comparison import compare, read_run
from dogo_fast.reporting.plots import draw_gains
from dogo_fast.training import PretrainConfig, Trainer
from dogo_fast.training.config import resolve_device

ROOT = Path(__file__).parent
USUAL = 0.5
"""NT-Xent's temperature in the authors' code, and of this library's losses where none is given."""
CHOICE_SEED = 1000
HELD_OUT = 0.1
FIRST = 3
"""Arms of the main stage that run before the others."""
EVERYTHING = tuple(kind for kind in KINDS if kind != "finetune")

Settings = Mapping[str, Any]

HEAD = """# Does distillation help?

Made of the records in experiments/records/{preset}, by
`python experiments/dogo_vs_simclr.py --preset {preset} --page docs/results.md`; the script's head says how.
{epochs} epochs, settings {settings}. Scores are accuracies on complete test splits, as `dogo-fast evaluate` has them;
`corruptions` is at the severities that the preset names.
"""


@dataclass(frozen=True)
class Preset:
    """What is trained.

    Attributes:
        pairs: backbones of the peers.
        settings: of every run.
        seeds: of the main stage.
        temperatures, kd_temperatures, kd_weights: what is chosen from; of the second the others are tried at the best.
        methods: by name, those of both peers that are trained beside SimCLR's, alone and with DoGo as chosen for that.
        kinds: of evaluation, in the main stage.
        severities: of corruptions.
    """

    pairs: tuple[tuple[str, str], ...]
    settings: Settings
    seeds: tuple[int, ...] = (0, 1, 2)
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.5)
    kd_temperatures: tuple[float, ...] = (0.1, 0.05, 0.2)
    kd_weights: tuple[float, ...] = (1.0, 3.0)
    methods: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    kinds: tuple[str, ...] = EVERYTHING
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)


_CIFAR = {"data": "cifar10", "recipe": "cifar", "batch_size": 256, "learning_rate": 2e-3}
_GPU = {**_CIFAR, "batch_size": 512, "optimiser": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4}
_OTHERS = {"simsiam": ("simsiam", "simsiam"), "mixed": ("simclr", "simsiam")}
_LARGE = (("resnet18", "resnet18"), ("resnet18", "resnet50"), ("wrn-16-2", "wrn-28-2"))
PRESETS = {
    "cpu": Preset((("small", "small"), ("small", "medium")), {**_CIFAR, "epochs": 6}, methods=_OTHERS, severities=(3,)),
    "gpu-short": Preset(_LARGE, {**_GPU, "epochs": 100, "warmup_epochs": 10}, methods=_OTHERS, kinds=tuple(KINDS)),
    "gpu-paper": Preset(_LARGE, {**_GPU, "epochs": 500, "warmup_epochs": 10}, methods=_OTHERS, kinds=tuple(KINDS)),
    "trial": Preset(
        (("small", "small"),),
        {"data": "digits", "epochs": 1},
        (0, 1),
        (0.2, 0.5),
        (0.1,),
        (1.0,),
        kinds=("knn", "linear"),
    ),
}
"""``cpu``: what two cores do in some hours. ``trial``: a minute, to see the program work."""


@dataclass(frozen=True)
class Cell:
    """One run: of a stage, a pair of peers and an arm, with what sets it apart from the others."""

    stage: str
    pair: tuple[str, str]
    arm: str
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.stage}-{'-'.join(self.pair)}-{self.arm}-{self.seed}"


def choice_cells(preset: Preset, pair: tuple[str, str], records: Path) -> Iterator[Cell]:
    """All that is chosen from; what depends on the best of the first ones, once they have their records."""
    for tau in preset.temperatures:
        yield _choice(pair, f"alone-t{tau:g}", {"temperature": tau, "kd_weight": 0.0})
    first, *others = preset.kd_temperatures
    grid = []
    for tau in preset.temperatures:
        for weight in preset.kd_weights:
            settings = {"temperature": tau, "kd_temperature": first, "kd_weight": weight}
            grid.append(_choice(pair, f"dogo-t{tau:g}-w{weight:g}", settings))
    yield from grid
    best = best_of(grid, records)
    if best is None:
        return
    for kd_temperature in others:
        yield _choice(pair, f"dogo-k{kd_temperature:g}", {**best, "kd_temperature": kd_temperature})
    yield _choice(pair, "dogo-ramp", {**best, "kd_ramp_epochs": preset.settings["epochs"] / 2})


def _choice(pair: tuple[str, str], arm: str, settings: Settings) -> Cell:
    return Cell("choose", pair, arm, CHOICE_SEED, {**settings, "hold_out": HELD_OUT})


def main_cells(preset: Preset, pair: tuple[str, str], records: Path, more: bool) -> Iterator[Cell]:
    """The first three arms for each seed, or the ``more``, with what was chosen; nothing while that is not complete."""
    chosen = {kind: choose(preset, pair, kind, records) for kind in ("alone", "dogo")}
    if None in chosen.values():
        return
    dogo = dict(chosen["dogo"] or {})
    arms: dict[str, Settings] = {
        "alone": {"temperature": USUAL, "kd_weight": 0.0},
        "alone-best": dict(chosen["alone"] or {}),
        "dogo": dogo,
        "dogo-authors": {"temperature": USUAL, "kd_weight": (100.0, 1.0), "kl_reduction": "mean"},
        "dogo-shared": {**dogo, "shared_views": True},
    }
    for name, methods in preset.methods.items():
        arms[f"{name}-alone"] = {**dict(chosen["alone"] or {}), "method": methods}
        arms[f"{name}-dogo"] = {**dogo, "method": methods}
    for seed in preset.seeds:
        for arm, settings in list(arms.items())[FIRST:] if more else list(arms.items())[:FIRST]:
            yield Cell("main", pair, arm, seed, settings)


def choose(preset: Preset, pair: tuple[str, str], kind: str, records: Path) -> Settings | None:
    """The settings of the best cell of a kind; None while one has no record."""
    cells = [cell for cell in choice_cells(preset, pair, records) if cell.arm.startswith(kind)]
    refined = kind == "alone" or any(cell.arm == "dogo-ramp" for cell in cells)
    return best_of(cells, records) if refined else None


def best_of(cells: Sequence[Cell], records: Path) -> Settings | None:
    """Of cells of the first stage, what the best on the held-out images sets; None while one has no record."""
    found = [(read_record(records, cell), cell) for cell in cells]
    if any(record is None for record, _ in found):
        return None
    _, best = max(((validation_score(record), -place) for place, (record, _) in enumerate(found) if record))
    return {key: value for key, value in cells[-best].settings.items() if key != "hold_out"}


def validation_score(record: Mapping[str, Any]) -> float:
    """The mean of both peers' k-NN and linear accuracy."""
    scores = [record[f"peer_{number}"]["scores"] for number in (1, 2)]
    return statistics.fmean(each[score][0] for each in scores for score in ("knn", "linear"))


def read_record(records: Path, cell: Cell) -> dict[str, Any] | None:
    """What a cell has left; None where it has not run."""
    path = records / f"{cell.name}.json"
    return json.loads(path.read_bytes()) if path.is_file() else None


def run_cell(
    preset: Preset, cell: Cell, data: DataSet, transfer: Sequence[DataSet], options: argparse.Namespace
) -> None:
    """Train, evaluate both peers, write the record; the folder with the run's weights stays under ``work``.

    Raises:
        RunInterrupted: SIGTERM or SIGINT; the run is saved.
    """
    folder = options.work / cell.name
    settings = {**preset.settings, **cell.settings, "peers": cell.pair, "seed": cell.seed, "evaluate": False}
    start = time.perf_counter()
    config = PretrainConfig(**settings, out=folder, resume="auto", device=options.device)
    trainer = Trainer(cell.pair, data, config)
    trainer.fit()
    trained = time.perf_counter() - start
    kinds = ("knn", "linear") if cell.stage == "choose" else preset.kinds
    others = [each.to(trainer.device) for each in transfer]
    kinds = tuple(kind for kind in kinds if kind != "transfer" or others)
    peers: dict[str, Any] = {}
    spent: dict[str, float] = {}
    for number, (name, backbone) in enumerate(zip(cell.pair, trainer.backbones, strict=True), 1):
        suite = Suite(backbone, trainer.data, others, seeds=(cell.seed,), severities=preset.severities)
        scores: dict[str, list[float]] = {}
        for kind in kinds:
            begun = time.perf_counter()
            scores |= suite.scores([kind])
            spent[kind] = round(spent.get(kind, 0.0) + time.perf_counter() - begun, 1)
        peers[f"peer_{number}"] = {"name": name, "scores": scores}
    record = {
        "cell": {"stage": cell.stage, "pair": cell.pair, "arm": cell.arm, "seed": cell.seed},
        "config": trainer.config.model_dump(mode="json", exclude={"out", "resume", "data_dir", "workers"}),
        **peers,
        "losses": [row["loss"] for row in trainer.history],
        "seconds": {"training": round(trained, 1), "all": round(time.perf_counter() - start, 1), **spent},
        "about": about(trainer.device),
    }
    write_atomically(options.records / f"{cell.name}.json", (json.dumps(record, indent=1) + "\n").encode())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


@cache
def about(device: torch.device) -> dict[str, str]:
    """The machine, the versions and the commit."""
    found = commit()
    return {
        "device": device_name(device) + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""),
        "commit": os.environ.get("DOGO_FAST_COMMIT") or (found["id"] if found else "unknown"),
        "dogo_fast": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def todo(preset: Preset, records: Path) -> Iterator[Cell]:
    """Cells without a record, in the order in which they are to run; asked again after each, since the choice is made
    of records."""
    cells: list[Cell] = []
    for pair in preset.pairs:
        cells += [*choice_cells(preset, pair, records), *main_cells(preset, pair, records, more=False)]
    for pair in preset.pairs:
        cells += main_cells(preset, pair, records, more=True)
    yield from (cell for cell in cells if read_record(records, cell) is None)


def work(preset: Preset, options: argparse.Namespace) -> None:
    """Cells, one after the other, until all are done or the time is up."""
    started = time.monotonic()
    about(resolve_device(options.device))  # now: the commit may be another when a cell ends
    data = load_data_set(str(preset.settings["data"]), options.data_dir)
    transfer = [load_data_set(name, Path(folder) if folder else None) for name, folder in options.transfer]
    while True:
        for cell in todo(preset, options.records):
            if options.minutes and time.monotonic() - started > 60 * options.minutes:
                return
            folder = options.work / cell.name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with locked(folder.parent / f"{cell.name}.lock", wait=False):
                    if read_record(options.records, cell) is None:
                        print(cell.name, flush=True)
                        run_cell(preset, cell, data, transfer, options)
                        break
            except BlockingIOError:  # another copy is at it
                continue
        else:
            if not any(True for _ in todo(preset, options.records)):
                return
            time.sleep(2)  # for the others' cells, on which the next ones depend


def write_page(name: str, records: Path, path: Path) -> None:
    """The page, and its pictures in the folder results beside it, of the records alone."""
    preset = PRESETS[name]
    parts = [HEAD.format(preset=name, epochs=preset.settings["epochs"], settings=json.dumps(preset.settings))]
    pictures = path.parent / "results"
    pictures.mkdir(parents=True, exist_ok=True)
    for pair in preset.pairs:
        parts.append(f"## Peers {', '.join(pair)}\n")
        parts.append(_choice_table(preset, pair, records))
        arms = [*main_cells(preset, pair, records, more=False), *main_cells(preset, pair, records, more=True)]
        runs = [read_run(records / f"{cell.name}.json") for cell in arms if read_record(records, cell) is not None]
        missing = len(arms) - len(runs)
        parts.append(f"{len(runs)} of {len(arms)} runs are done.\n" if missing or not arms else "")
        if any(run.arm == "alone-best" for run in runs):
            (comparison,) = compare(runs, "alone-best")
            parts.append(describe(comparison) + "\n")
            for beginning, (what, label) in GAINS.items():
                drawn = draw_gains(comparison, beginning, label, pictures / f"{name}-{'-'.join(pair)}-{what}.png")
                parts += [f"![gain against {what}](results/{drawn.name})\n"] if drawn else []
    write_atomically(path, "\n".join(part for part in parts if part).encode())


def _choice_table(preset: Preset, pair: tuple[str, str], records: Path) -> str:
    """What was chosen from, and what was chosen."""
    lines = ["| chosen from | k-NN | linear probe | mean |", "|---|--:|--:|--:|"]
    machines = set()
    for cell in choice_cells(preset, pair, records):
        record = read_record(records, cell)
        if record is not None:
            machines.add("{device}, torch {torch}, commit {commit:.10}".format(**record["about"]))
            scores = [record[f"peer_{number}"]["scores"] for number in (1, 2)]
            knn, linear = (", ".join(f"{100 * each[score][0]:.1f}" for each in scores) for score in ("knn", "linear"))
            lines.append(f"| {cell.arm} | {knn} | {linear} | {100 * validation_score(record):.2f} |")
    chosen = {kind: choose(preset, pair, kind, records) for kind in ("alone", "dogo")}
    words = [f"{kind}: {json.dumps(settings)}" for kind, settings in chosen.items() if settings]
    text = "Accuracy of peer 1, peer 2 on the held-out tenth, one seed, in %; " + "; ".join(sorted(machines))
    return f"{text}.\n\n" + "\n".join(lines) + f"\n\nChosen: {'; '.join(words) or 'not yet'}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--data-dir", type=Path, help="folder of the data set's files")
    parser.add_argument("--transfer", nargs="*", default=[], metavar="NAME[=DIR]", help="other data sets to probe on")
    parser.add_argument("--records", type=Path, help="folder of the records (default: experiments/records/PRESET)")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: runs/experiment-PRESET)")
    parser.add_argument("--minutes", type=float, help="start no cell later than this")
    parser.add_argument("--device", default="auto", help="as in dogo-fast pretrain")
    parser.add_argument("--page", type=Path, help="write the page of results, of the records alone, and end")
    options = parser.parse_args()
    options.records = options.records or ROOT / "records" / options.preset
    options.work = options.work or Path("runs") / f"experiment-{options.preset}"
    options.transfer = [(name, folder) for name, _, folder in (word.partition("=") for word in options.transfer)]
    if options.page is not None:
        write_page(options.preset, options.records, options.page)
        return 0
    for folder in (options.records, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        work(PRESETS[options.preset], options)
    except RunInterrupted as interruption:
        print(interruption)
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

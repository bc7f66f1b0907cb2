"""The main job: evaluate new peers, train them together, evaluate them again, and leave everything in a folder."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dogo_fast.data import DataSet, load_data_set
from dogo_fast.errors import RunInterrupted, UserError
from dogo_fast.evaluation import Scores, evaluate_features, evaluate_untrained
from dogo_fast.training.building import refuse_several_processes
from dogo_fast.training.config import PretrainConfig, resolve_device
from dogo_fast.training.interrupt import ending_at_once
from dogo_fast.training.progress import folder_of
from dogo_fast.training.run_folder import RunFolder
from dogo_fast.training.trainer import Trainer


@dataclass(frozen=True)
class PeerResult:
    """One peer's scores, as a new network and after training; None where the data set has no labels."""

    name: str
    untrained: Scores | None
    trained: Scores | None


Reporter = Callable[[Trainer, RunFolder, Sequence[PeerResult]], None]


def pretrain(config: PretrainConfig, report: Reporter | None = None) -> tuple[PeerResult, ...]:
    """Train all peers as configured, evaluate them, and leave everything in the run folder.

    Args:
        config: the settings.
        report: called at the end, where ``config.report`` asks for it.

    Raises:
        UserError: something in the configuration, the data files or a checkpoint; a new run has written nothing then.
        DivergedError: a loss that is not finite; the checkpoints and metrics from before are kept.
        RunInterrupted: SIGTERM or SIGINT; in training, the step was finished and everything is saved.
    """
    refuse_several_processes()
    resolve_device(config.device)  # before the data are read: that may take long
    if folder_of(config) is None and config.resume != "auto":
        config = config.model_copy(update={"out": new_folder(config)})
    data = load_data_set(
        config.data,
        config.data_dir,
        view_size=config.view_size,
        decode_size=config.decode_size,
        residence=config.residence,
        workers=config.workers,
    )
    try:
        trainer = Trainer(config.peers, data, config)
    except UserError:
        raise
    except ValueError as error:  # of networks and recipes that do not suit the images
        raise UserError(str(error)) from error
    folder = trainer.open_folder()
    again = f"dogo-fast pretrain --resume auto --out {shlex.quote(str(folder.path))}"
    with folder.locked(), ending_at_once(f"To go on: {again}"):
        announce(trainer, folder)
        folder.write_config(trainer.config)
        untrained = _untrained_scores(trainer)
        trainer.fit(folder)
        if trainer.asked_to_stop is not None and config.evaluate:
            raise RunInterrupted(f"stopped by {trainer.asked_to_stop} after the last step; saved. To evaluate: {again}")
        trained = _evaluate(evaluate_features, trainer, "trained")
        results = tuple(PeerResult(*result) for result in zip(config.peers, untrained, trained, strict=True))
        folder.write_json("results.json", {f"peer_{number}": _measured(peer) for number, peer in enumerate(results, 1)})
        if report is not None and config.report:
            report(trainer, folder, results)
    return results


def new_folder(config: PretrainConfig) -> Path:
    """Where a run writes that was not told: runs/DATA-PEERS-TIME."""
    names = "-".join(name.replace(":", "-") for name in config.peers)
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.data.replace(':', '-').replace('/', '-')}-{names}-{time}"


def _measured(result: PeerResult) -> dict[str, Any]:
    """A peer's name and the scores that it has."""
    return {key: value for key, value in asdict(result).items() if value is not None}


def announce(trainer: Trainer, folder: RunFolder) -> None:
    """What is about to happen, in one line or two."""
    config, data = trainer.config, trainer.data
    test = f" and {len(data.test)} test" if data.test is not None else ""
    print(
        f"{data.name}: {data.image_count} training{test} images; peers {','.join(config.peers)} on {config.device} "
        f"in {config.precision}{trainer.measured}; results in {folder.path}"
    )
    for note in (*data.notes, *unlabelled(data)):
        print(f"{data.name}: {note}")
    if trainer.resumed_from is not None:
        done = ", all of them" if trainer.progress.epoch > config.epochs else ""
        print(f"resumed from {trainer.resumed_from}: {trainer.steps} steps done{done}")
    if trainer.started_from is not None:
        print(f"started from the weights in {trainer.started_from}")
    sys.stdout.flush()


def unlabelled(data: DataSet) -> Iterator[str]:
    """A line for each split that has labels, but not for all its images."""
    for name, split in (("training", data.train), ("test", data.test)):
        missing = 0 if split is None or split.labels is None else int((split.labels < 0).sum())
        if split is not None and missing:
            yield f"{missing} of {len(split)} {name} images have no label and are left out of the scores"
    if data.train is not None and data.test is not None and data.train.labels is not None:
        assert data.test.labels is not None
        strange = int((~torch.isin(data.test.labels, data.train.labels) & (data.test.labels >= 0)).sum())
        if strange:
            yield f"{strange} of {len(data.test)} test images have labels that no training image has: never right"


def _untrained_scores(trainer: Trainer) -> list[Scores | None]:
    """Measured before the first step, and remembered by the checkpoints."""
    notes = trainer.progress.notes
    if "untrained" not in notes:
        scores = (
            _evaluate(evaluate_untrained, trainer, "untrained") if trainer.steps == 0 else [None] * len(trainer.peers)
        )
        notes["untrained"] = [None if score is None else asdict(score) for score in scores]
    return [None if score is None else Scores(**score) for score in notes["untrained"]]


def _evaluate(
    measure: Callable[[nn.Module, DataSet, int], Scores], trainer: Trainer, state: str
) -> list[Scores | None]:
    """Both measures of both peers, announced before and told after: on a CPU and 60 000 images they take minutes."""
    config = trainer.config
    if not config.evaluate or trainer.data.train is None or trainer.data.test is None:
        return [None] * len(trainer.peers)
    results: list[Scores | None] = []
    for number, (name, backbone) in enumerate(zip(config.peers, trainer.backbones, strict=True), 1):
        print(f"evaluating peer {number} ({name}), {state}: k-NN and linear probe ...", end=" ", flush=True)
        scores = measure(backbone, trainer.data, config.workers)
        print(f"{100 * scores.knn:.1f} %, {100 * scores.linear:.1f} %", flush=True)
        results.append(scores)
    return results

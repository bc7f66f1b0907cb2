"""The loop around the step: epochs and batches, saving at their boundaries, and an end at any moment without loss."""

import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dogo_fast.data import Batch, DataSet, Images, ImageSource, IterableSource, make_loader
from dogo_fast.errors import RunInterrupted, UserError
from dogo_fast.evaluation import extract_features, hold_out, knn_accuracy, power_law_subset
from dogo_fast.evaluation.features import scorable
from dogo_fast.ops.backend import resolve_backend
from dogo_fast.peers import Peer
from dogo_fast.philox import derive_seed
from dogo_fast.training.building import as_data_set, build_step, refuse_several_processes
from dogo_fast.training.config import FROM_PYTHON, PretrainConfig, resolve_device
from dogo_fast.training.interrupt import Interrupt
from dogo_fast.training.log import Logger, check_installed, open_loggers, progress_bar
from dogo_fast.training.metrics import READ_EVERY, EpochMetrics, check_weights, clock
from dogo_fast.training.optimisers import learning_rate_factor
from dogo_fast.training.precision import automatic_precision
from dogo_fast.training.progress import Progress, find_resumed, folder_of, start_from
from dogo_fast.training.run_folder import RunFolder

COLLAPSED = 0.1
"""Of 1/√D, the standard deviation of projections that point everywhere."""


class Trainer:
    """Trains two peers or more together; ten lines of a notebook are enough.

    Args:
        backbones: two or more names (see ``dogo_fast.peers``) or any modules that map [N, 3, S, S] to [N, features].
        data: images uint8 [N, 3, H, W], a data set, or a source of images to stream.
        config: the settings; or give them as ``options``, the fields of ``PretrainConfig``, by name.

    Attributes: ``peers``, ``backbones`` (trained in place), ``history`` (a row of metrics per epoch), ``steps`` (done),
    ``resumed_from`` and ``started_from`` (a checkpoint, or None).

    Example::

        trainer = Trainer(("resnet18", my_network), images, epochs=100, batch_size=256)
        history = trainer.fit()
        features = trainer.backbones[1](batch)

    With ``out=DIR`` metrics, checkpoints and weights are written there, and ``resume="auto"`` goes on with the run that
    is there; without ``out`` nothing is written. After ``fit`` the networks are in evaluation mode.

    Raises:
        UserError, pydantic.ValidationError: a setting that is not allowed.
        ValueError: a backbone that does not give features.
    """

    def __init__(
        self,
        backbones: Sequence[str | nn.Module],
        data: Images | DataSet | ImageSource | IterableSource,
        config: PretrainConfig | None = None,
        **options: Any,
    ) -> None:
        refuse_several_processes()
        if len(backbones) < 2:
            raise ValueError(f"backbones must be two or more, got {len(backbones)}")
        if config is not None and options:
            raise ValueError(f"options must not be given beside config, got {', '.join(options)}")
        # how many there are decides what one value for all peers means; their names are looked at below
        given = config or PretrainConfig(**{"peers": ("small",) * len(backbones), **options})
        if len(given.peers) != len(backbones):
            raise ValueError(
                f"backbones must be as many as `peers` of config, {len(given.peers)}, got {len(backbones)}"
            )
        found = find_resumed(given)
        by_name = isinstance(data, DataSet) and data.name == given.data
        saved = {} if found is None or given.precision != "auto" else {"precision": found[1]["config"]["precision"]}
        self.measured = (
            "" if given.precision != "auto" or saved else automatic_precision(resolve_device(given.device))[1]
        )
        """Why ``precision`` "auto" means what it does, for the first line of a run."""
        self._config = given.resolve(
            **saved,
            out=folder_of(given),
            peers=tuple(name if isinstance(name, str) else type(name).__name__ for name in backbones),
            data=given.data if by_name else FROM_PYTHON,
        )
        check_installed(self.config.tensorboard, self.config.wandb)
        self.device = torch.device(self.config.device)
        self.data = self._as_asked_for(as_data_set(data), given).to(self.device)
        self.loader = make_loader(
            self.data.pretraining,
            self.config.batch_size,
            derive_seed(self.config.seed, "order"),
            self.device,
            self.config.workers,
        )
        self.step = build_step(self.config, self.data, backbones)
        self.resumed_from = None if found is None else found[0]
        self.progress = Progress(self.config, self.data, self.step, self.resumed_from)
        self.asked_to_stop: str | None = None
        self._capture_tried = self._warned = False
        self._scored = ""
        if self.config.score_every and (self.data.train is None or self.data.test is None):
            raise UserError(f"`score_every` needs labelled training and test images, {self.data.name} has not")
        self._folder: RunFolder | None = None
        self._saved_at = clock()
        self.started_from: Path | None = None
        if found is not None:
            self.load_state(found[1])
        elif self.config.start_from is not None:
            self.started_from = start_from(self.config.start_from, self.peers, self.config.peers)

    @staticmethod
    def _as_asked_for(data: DataSet, given: PretrainConfig) -> DataSet:
        """With the sizes that the settings name; those that they don't are the data set's own."""
        if "decode_size" in given.model_fields_set:
            for part in (data.pretraining, data.train, data.test):
                if isinstance(part, ImageSource | IterableSource):
                    part.decode_size = given.decode_size
        if given.imbalance is not None or given.hold_out is not None:
            data = _some_of(data, given)
        return data if given.view_size is None else replace(data, view_size=given.view_size)

    @property
    def config(self) -> PretrainConfig:
        """The settings, resolved when the trainer was built; nothing changes them."""
        return self._config

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The networks with their heads."""
        return self.step.peers

    @property
    def backbones(self) -> tuple[nn.Module, ...]:
        """The networks without their heads."""
        return tuple(peer.backbone for peer in self.peers)

    @property
    def history(self) -> list[dict[str, float]]:
        """A row of metrics for each epoch that is over."""
        return self.progress.history

    @property
    def steps(self) -> int:
        """Done so far."""
        return self.progress.steps

    # ---------------------------------------------------------------------------------------------------- training

    def fit(self, folder: RunFolder | None = None, until: int | None = None) -> list[dict[str, float]]:
        """Train to the last epoch, from wherever the trainer stands; returns ``history``.

        Args:
            folder: where to write; None means that of ``config.out``, if there is one.
            until: the last epoch to train now; a later call goes on after it. None means the last of all.

        Raises:
            DivergedError: a loss that is not finite; checkpoints and metrics from before are kept.
            RunInterrupted: SIGTERM or SIGINT; the step was finished and everything is saved.
            UserError: a folder that cannot be written, or too many damaged images.
            RuntimeError: an exception has left a step in its middle before, and no state was loaded since.
        """
        if not self.progress.whole:
            raise RuntimeError(
                f"step {self.steps + 1} was left in its middle, with parts of it done: load_state() an earlier state, "
                "or build a new Trainer"
            )
        folder = folder or self._folder
        if folder is None and self.config.out is not None:
            folder = self.open_folder()
        self._folder = folder  # a second fit goes on in it
        last = self.config.epochs if until is None else min(until, self.config.epochs)
        with nullcontext() if folder is None else folder.locked():
            self._train(last)
            if folder is not None:
                folder.write_peers(self.config.peers, self.peers, self.data)
        for peer in self.peers:
            peer.eval()
        return self.history

    def _train(self, last: int) -> None:
        """To the end of an epoch."""
        if self._folder is not None:
            self._folder.write_config(self.config)
            if self.history:
                self._folder.write_metrics(self.history)  # an interrupted run may have died before it did
        for peer in self.peers:
            peer.train()
        # what is to be compiled is compiled before the clock runs
        resolve_backend("auto", (self.step.augmentation.table,))
        each = self.config.batch_size
        images = self.config.epochs * len(self.loader) * each
        with (
            Interrupt() as interrupt,
            self.progress.own_random_numbers(),
            progress_bar(images, self.steps * each) as bar,
            ExitStack() as stack,
        ):
            loggers = [stack.enter_context(closing(logger)) for logger in self._open_loggers()]
            stack.enter_context(closing(self.loader))
            while self.progress.epoch <= last:
                self._train_epoch(interrupt, bar, loggers)
                if interrupt.asked and self.progress.epoch <= last:
                    self._stop(interrupt)
        self.asked_to_stop = interrupt.asked

    def _train_epoch(self, interrupt: Interrupt, bar: "tqdm[Any]", loggers: Sequence[Logger]) -> None:
        """The rest of the current epoch."""
        progress = self.progress
        metrics = EpochMetrics(self.step.meters, progress.epoch)
        if progress.partial is not None:
            metrics.load(progress.partial)
            progress.partial = None
        self.step.augmentation.epoch.fill_(progress.epoch)
        bar.set_description(f"epoch {progress.epoch}/{self.config.epochs}", refresh=False)
        try:
            if metrics.steps < len(self.loader):  # else only the end of the epoch is left, which failed before
                self._train_batches(metrics, interrupt, bar)
            metrics.read()
            check_weights(self.peers, self.steps, progress.epoch)
        except BaseException:
            progress.partial = metrics.state()  # a later fit goes on from the last whole step
            raise
        row = metrics.row(self._learning_rates(self.steps - metrics.steps))
        best = self._score(row)
        progress.history.append(row)
        self._warn_of_collapse(row)
        progress.epoch, progress.position = progress.epoch + 1, 0
        for logger in loggers:  # first: what follows the checkpoint that a run goes on from is purged
            logger.write(row, self.steps)
        if self._folder is not None:
            if best:  # first: a run that is killed between the two scores this epoch again
                self._folder.checkpoints.save_best(self.state())
            self.save(self._folder)
            self._folder.write_metrics(self.history)

    def _score(self, row: dict[str, float]) -> bool:
        """Add each peer's k-NN accuracy, where it is time for that; whether their mean is the best so far."""
        data, epoch = self.data, int(row["epoch"])
        if not self.config.score_every or epoch % self.config.score_every:
            return False
        assert data.train is not None and data.test is not None
        for number, backbone in enumerate(self.backbones, 1):
            train, test = (
                extract_features(backbone, part, data, self.config.workers) for part in (data.train, data.test)
            )
            with scorable(data):
                row[f"knn_{number}"] = knn_accuracy(*train, *test)
        scores = [row[f"knn_{number}"] for number in range(1, len(self.peers) + 1)]
        self._scored = f", k-NN {' + '.join(f'{score:.1%}' for score in scores)} after {epoch}"
        mean = sum(scores) / len(scores)
        if "best" in self.progress.notes and mean <= self.progress.notes["best"]["knn"]:
            return False
        self.progress.notes["best"] = {"epoch": epoch, "knn": mean}
        return True

    def _train_batches(self, metrics: EpochMetrics, interrupt: Interrupt, bar: "tqdm[Any]") -> None:
        progress = self.progress
        start = clock()
        for batch in self.loader.epoch(progress.epoch, progress.position, metrics.steps):
            waited = clock() - start
            progress.whole = False
            self._train_batch(batch)
            metrics.add(len(batch.indices), waited)
            progress.steps, progress.position = progress.steps + 1, batch.position
            progress.whole = True
            bar.update(len(batch.indices))
            if metrics.steps % (READ_EVERY if self.device.type == "cuda" else 1) == 0:
                losses = metrics.read()
                shown = " + ".join(f"{losses[f'loss_{number}']:.3f}" for number in range(1, len(self.peers) + 1))
                apart = " + ".join(f"{losses[name] * width**0.5:.0%}" for name, width in self._deviations())
                wait = f"{metrics.wait_share():.0%}"
                bar.set_postfix_str(f"loss {shown}, spread {apart}, data wait {wait}{self._scored}", refresh=False)
            if metrics.steps < len(self.loader):
                self._between_batches(metrics, interrupt)
            start = clock()

    def _deviations(self) -> Iterator[tuple[str, int]]:
        """The metric that tells of a peer's collapse, and the columns of its projections."""
        return ((name, peer.projection_width) for name, peer in zip(self.step.deviations, self.peers, strict=True))

    def _warn_of_collapse(self, row: dict[str, float]) -> None:
        """Once, after an epoch in which a peer's projections were nearly the same for all images."""
        for number, (name, width) in enumerate(self._deviations(), 1):
            if row[name] * width**0.5 < COLLAPSED and not self._warned:
                self._warned = True
                warnings.warn(
                    f"peer {number} has collapsed in epoch {row['epoch']:.0f}: the standard deviation of its "
                    f"normalised projections is {row[name]:.2g}, and 1/√{width} = {width**-0.5:.2g} where they point "
                    "everywhere; a lower `learning_rate` or a larger `batch_size` may help",
                    stacklevel=2,
                )

    def _train_batch(self, batch: Batch) -> None:
        if self.device.type == "cuda" and self.config.graph and not self._capture_tried:
            self._capture_tried = True
            self.step.capture(batch)
        if self.step.ramp is not None:
            self.step.ramp.fill_(min(1.0, self.steps / (self.config.kd_ramp_epochs * len(self.loader))))
        self.step(batch, self._learning_rates(self.steps))

    def _learning_rates(self, step: int) -> tuple[float, ...]:
        """Each peer's in a step, counted from 0."""
        config, steps = self.config, len(self.loader)
        warmup = round(config.warmup_epochs * steps)
        factor = learning_rate_factor(step, config.epochs * steps, warmup, config.schedule)
        return tuple(rate * factor for rate in config.learning_rate)

    # ------------------------------------------------------------------------------------------ saving, going on

    def _between_batches(self, metrics: EpochMetrics, interrupt: Interrupt) -> None:
        """Leave, if that is asked for; save, if it is time to."""
        overdue = self._folder is not None and clock() - self._saved_at > 60 * self.config.save_minutes
        if not interrupt.asked and not overdue:
            return
        metrics.read()
        check_weights(self.peers, self.steps, self.progress.epoch)
        self.progress.partial = metrics.state()
        if interrupt.asked:
            self._stop(interrupt)
        assert self._folder is not None
        self.save(self._folder)
        self.progress.partial = None

    def _stop(self, interrupt: Interrupt) -> None:
        """Save, and say how to go on."""
        epoch = min(self.progress.epoch, self.config.epochs)
        what = f"stopped by {interrupt.asked} after step {self.steps} (epoch {epoch})"
        if self._folder is None:
            raise RunInterrupted(f"{what}; fit() goes on from here")
        path = self.save(self._folder)
        if self.config.data == FROM_PYTHON:
            raise RunInterrupted(f"{what}; saved. To go on: fit() again, or the same Trainer with resume={str(path)!r}")
        raise RunInterrupted(f"{what}; saved. To go on: dogo-fast pretrain --resume {shlex.quote(str(path))}")

    def save(self, folder: RunFolder) -> Path:
        """Write a checkpoint of everything that the rest of the run depends on.

        Raises:
            UserError: it cannot be written; earlier ones are untouched.
        """
        path = folder.checkpoints.save(self.state(), self.config.save_every * len(self.loader))
        self._saved_at = clock()
        return path

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: copies, on the CPU."""
        return self.progress.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's content; the trajectory is that of the run that wrote it.

        Raises:
            UserError: settings that differ from that run's and would change the trajectory, or networks that do.
        """
        self.progress.load(state)
        self._capture_tried = False

    def open_folder(self) -> RunFolder:
        """The folder of ``config.out``: that of the run that is resumed, or a new or empty one.

        Raises:
            UserError: any other folder, or none given.
        """
        return self.progress.open_folder()

    def _open_loggers(self) -> Sequence[Logger]:
        if self._folder is None:
            return []
        config = self.config
        content = config.model_dump(mode="json")
        return open_loggers(self._folder.path, config.tensorboard, config.wandb, content, self.steps + 1)


def _some_of(data: DataSet, given: PretrainConfig) -> DataSet:
    """An unbalanced part, or one of which some images are held out.

    Raises:
        UserError: a data set without labels, or with images that have none.
    """
    train = data.train
    labels = None if train is None else train.labels
    if labels is None or bool((labels < 0).any()) or len(labels.unique()) < 2 or data.image_count != len(labels):
        raise UserError(
            "`imbalance` and `hold_out` need images that all have labels, of two classes or more, to pretrain on, got "
            f"{data.name}"
        )
    labels = labels.cpu()
    rows, held = torch.arange(len(labels)), None
    if given.hold_out is not None:
        rows, held = hold_out(labels, given.hold_out, given.seed)
    if given.imbalance is not None:
        rows = rows[power_law_subset(labels[rows], given.imbalance, given.seed)]
    note = f"{len(rows)} of {len(labels)} training images are trained on"
    note += "" if held is None else f", {len(held)} are scored on instead of the test images"
    return replace(data.select(rows, held), notes=(*data.notes, note))

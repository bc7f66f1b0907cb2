"""The loop around the step: epochs, metrics, checkpoints, and an end at any moment without loss."""

import copy
import shlex
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from dogo_fast.data import Batch, DataSet, ImageSource, make_loader
from dogo_fast.errors import DivergedError, RunInterrupted, UserError
from dogo_fast.ops.backend import resolve_backend
from dogo_fast.peers import Peer, build_peer
from dogo_fast.philox import derive_seed
from dogo_fast.training.checkpoint import FOLDER, CheckpointFolder, find_checkpoint, run_of
from dogo_fast.training.config import FREE_ON_RESUME, FROM_PYTHON, PRECISIONS, PretrainConfig
from dogo_fast.training.interrupt import Interrupt
from dogo_fast.training.log import BestEffort, Logger, check_installed, open_loggers
from dogo_fast.training.metrics import READ_EVERY, EpochMetrics, clock
from dogo_fast.training.objectives import Objective
from dogo_fast.training.optimisers import build_optimiser, learning_rate_factor
from dogo_fast.training.run_folder import RunFolder, run_settings
from dogo_fast.training.step import StepSettings, TrainingStep
from dogo_fast.views import VIEW_RECIPES, Augmentation, ViewRecipe

VIEWS = 4
"""Two of each peer."""
SMALL_PHOTOGRAPH = 64
"""Pixels: larger images get SimCLR's recipe for ImageNet, with blur, the others that for CIFAR-10."""


class Trainer:
    """Trains two peers together; ten lines of a notebook are enough.

    Args:
        backbones: two names (see ``dogo_fast.peers``) or any modules that map [N, 3, S, S] to [N, features].
        data: images uint8 [N, 3, H, W], a data set, or a source of images to stream.
        config: the settings; or give them as ``options``, the fields of ``PretrainConfig``, by name.

    Attributes: ``peers``, ``backbones`` (trained in place), ``history`` (a row of metrics per epoch), ``steps`` (done),
    ``resumed_from`` (a checkpoint, or None).

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
        data: Tensor | DataSet | ImageSource,
        config: PretrainConfig | None = None,
        **options: Any,
    ) -> None:
        if len(backbones) != 2:
            raise ValueError(f"backbones must be two, got {len(backbones)}")
        if config is not None and options:
            raise ValueError(f"options must not be given beside config, got {', '.join(options)}")
        given = config or PretrainConfig(**options)
        found = find_resumed(given)
        out = given.out or (None if found is None else run_of(found[0]))
        names = tuple(name if isinstance(name, str) else type(name).__name__ for name in backbones)
        by_name = isinstance(data, DataSet) and data.name == given.data
        source = given.data if by_name else FROM_PYTHON
        self.config = given.resolve().model_copy(update={"out": out, "peers": names, "data": source})
        check_installed(self.config.tensorboard, self.config.wandb)
        self.device = torch.device(self.config.device)
        self.data = _as_data_set(data).to(self.device)
        self.loader = make_loader(
            self.data.pretraining,
            self.config.batch_size,
            derive_seed(self.config.seed, "order"),
            self.device,
            self.config.workers,
        )
        self.step = self._build_step(backbones)
        self.peers = self.step.peers
        self.history: list[dict[str, float]] = []
        self.notes: dict[str, Any] = {}
        self.steps = 0
        self.epoch, self.position = 1, 0
        self._capture_tried = False
        self._folder: RunFolder | None = None
        self._random: dict[str, Tensor] | None = None
        self._partial: dict[str, Any] | None = None
        self._fitting = False
        self.resumed_from = None if found is None else found[0]
        self.asked_to_stop: str | None = None
        self._looked_at = [] if out is None else CheckpointFolder(out).files()
        self._saved_at = clock()
        self._whole = True
        if found is not None:
            self.load_state(found[1])

    @property
    def backbones(self) -> tuple[nn.Module, nn.Module]:
        """The two networks without their heads."""
        first, second = (peer.backbone for peer in self.peers)
        return first, second

    def _build_step(self, backbones: Sequence[str | nn.Module]) -> TrainingStep:
        config, size = self.config, self.data.image_size
        dtype = PRECISIONS[config.precision]
        recipe = choose_recipe(config.recipe, self.data)
        augmentation = Augmentation(
            [recipe] * VIEWS,
            (size, size),
            derive_seed(config.seed, "views"),
            mean=self.data.mean,
            deviation=self.data.deviation,
            dtype=dtype,
            device=self.device,
        )
        peers = [
            build_peer(backbone, size, config.seed, number, method).to(self.device)
            for number, (backbone, method) in enumerate(zip(backbones, config.method, strict=True), 1)
        ]
        _check_parameters(peers)
        optimisers = [
            build_optimiser(
                config.optimiser[number],
                peer.parameters(),
                learning_rate=config.learning_rate[number],
                weight_decay=config.weight_decay[number],
                momentum=config.momentum[number],
                device=self.device,
            )
            for number, peer in enumerate(peers)
        ]
        objective = Objective(
            config.method, config.kd_weight, config.temperature, config.kd_temperature, config.kl_reduction
        )
        images = self.data.pretraining
        if not isinstance(images, Tensor):
            images = torch.zeros(config.batch_size, 3, size, size, dtype=torch.uint8, device=self.device)
        settings = StepSettings(dtype, config.accumulate, config.clip_norm, config.compile)
        return TrainingStep(peers, optimisers, objective, augmentation, images, config.batch_size, settings)

    # ---------------------------------------------------------------------------------------------------- training

    def fit(self, folder: RunFolder | None = None) -> list[dict[str, float]]:
        """Train to the last epoch, from wherever the trainer stands; returns ``history``.

        Args:
            folder: where to write; None means that of ``config.out``, if there is one.

        Raises:
            DivergedError: a loss that is not finite; checkpoints and metrics from before are kept.
            RunInterrupted: SIGTERM or SIGINT; the step was finished and everything is saved.
            UserError: a folder that cannot be written, or too many damaged images.
            RuntimeError: an exception has left a step in its middle before, and no state was loaded since.
        """
        if not self._whole:
            raise RuntimeError(
                f"step {self.steps + 1} was left in its middle, with parts of it done: load_state() an earlier state, "
                "or build a new Trainer"
            )
        folder = folder or self._folder
        if folder is None and self.config.out is not None:
            folder = self.open_folder()
        self._folder = folder  # a second fit goes on in it
        with nullcontext() if folder is None else folder.locked():
            return self._fit(folder)

    def open_folder(self) -> RunFolder:
        """The folder of ``config.out``: that of the run that is resumed, or a new or empty one.

        Raises:
            UserError: any other folder, or none given.
        """
        if self.config.out is None:
            raise UserError("--out must be given to write to, got none")
        settings = run_settings(self.config.out)
        if settings is not None and self.resumed_from is None:
            self._check_settings(settings, f"in the run that --out names, {self.config.out}, which has no checkpoint")
        source = None if self.resumed_from is None else run_of(self.resumed_from)
        same = source is not None and source.resolve() == self.config.out.resolve()
        starting = self.config.resume == "auto" and self.resumed_from is None
        return RunFolder(self.config.out, same or starting, self._looked_at)

    def _fit(self, folder: RunFolder | None) -> list[dict[str, float]]:
        if folder is not None:
            folder.write_config(self.config)
            if self.history:
                folder.write_metrics(self.history)  # an interrupted run may have died before it did
        for peer in self.peers:
            peer.train()
        # what is to be compiled is compiled before the clock runs
        resolve_backend("auto", (self.step.augmentation.table,))
        with Interrupt() as interrupt, self._own_random_numbers(), self._progress_bar() as bar:
            loggers = self._open_loggers(folder)
            try:
                while self.epoch <= self.config.epochs:
                    self._train_epoch(folder, interrupt, bar, loggers)
            finally:
                self.loader.close()
                for logger in loggers:
                    logger.close()
        self.asked_to_stop = interrupt.asked
        if folder is not None:
            self._write_weights(folder)
        for peer in self.peers:
            peer.eval()
        return self.history

    def _train_epoch(
        self, folder: RunFolder | None, interrupt: Interrupt, bar: "tqdm[Any]", loggers: Sequence[Logger]
    ) -> None:
        """The rest of the current epoch."""
        metrics = EpochMetrics(self.step.meters, self.epoch)
        if self._partial is not None:
            metrics.load(self._partial)
            self._partial = None
        self.step.augmentation.epoch.fill_(self.epoch)
        bar.set_description(f"epoch {self.epoch}/{self.config.epochs}", refresh=False)
        try:
            if metrics.steps < len(self.loader):  # else only the end of the epoch is left, which failed before
                self._train_batches(metrics, folder, interrupt, bar)
            metrics.read()
            self._check_weights()
        except BaseException:
            self._partial = metrics.state()  # a later fit goes on from the last whole step
            raise
        self._finish_epoch(metrics, folder, loggers)
        if interrupt.asked and self.epoch <= self.config.epochs:
            self._stop(folder, interrupt, None)

    def _train_batches(
        self, metrics: EpochMetrics, folder: RunFolder | None, interrupt: Interrupt, bar: "tqdm[Any]"
    ) -> None:
        start = clock()
        for batch in self.loader.epoch(self.epoch, self.position, metrics.steps):
            waited = clock() - start
            self._whole = False
            self._train_batch(batch)
            metrics.add(len(batch.rows), waited)
            self.steps, self.position = self.steps + 1, batch.position
            self._whole = True
            bar.update(len(batch.rows))
            if metrics.steps % (READ_EVERY if self.device.type == "cuda" else 1) == 0:
                losses = metrics.read()
                shown = f"loss {losses['loss_1']:.3f} + {losses['loss_2']:.3f}, data wait {metrics.wait_share():.0%}"
                bar.set_postfix_str(shown, refresh=False)
            if metrics.steps < len(self.loader):
                if interrupt.asked:
                    self._stop(folder, interrupt, metrics)
                if folder is not None and clock() - self._saved_at > 60 * self.config.save_minutes:
                    self._note_partial(metrics)
                    self.save(folder)
                    self._partial = None
            start = clock()

    def _train_batch(self, batch: Batch) -> None:
        if self.device.type == "cuda" and self.config.graph and not self._capture_tried:
            self._capture_tried = True
            self.step.capture(batch)
        self.step(batch, self._learning_rates())

    def _learning_rates(self) -> tuple[float, float]:
        """Of the next step."""
        config, steps = self.config, len(self.loader)
        warmup = round(config.warmup_epochs * steps)
        factor = learning_rate_factor(self.steps, config.epochs * steps, warmup, config.schedule)
        first, second = config.learning_rate
        return first * factor, second * factor

    def _finish_epoch(self, metrics: EpochMetrics, folder: RunFolder | None, loggers: Sequence[Logger]) -> None:
        steps = self.steps
        self.steps -= metrics.steps
        rates = self._learning_rates()
        self.steps = steps
        row = metrics.row(rates)
        self.history.append(row)
        self.epoch, self.position = self.epoch + 1, 0
        for logger in loggers:  # first: what follows the checkpoint that a run goes on from is purged
            logger.write(row, self.steps)
        if folder is not None:
            self.save(folder)
            folder.write_metrics(self.history)

    def _stop(self, folder: RunFolder | None, interrupt: Interrupt, metrics: EpochMetrics | None) -> None:
        """Save, and say how to go on."""
        if metrics is not None:
            self._note_partial(metrics)
        what = f"stopped by {interrupt.asked} after step {self.steps} (epoch {min(self.epoch, self.config.epochs)})"
        if folder is None:
            raise RunInterrupted(f"{what}; fit() goes on from here")
        path = self.save(folder)
        if self.config.data == FROM_PYTHON:
            raise RunInterrupted(f"{what}; saved. To go on: fit() again, or the same Trainer with resume={str(path)!r}")
        raise RunInterrupted(f"{what}; saved. To go on: dogo-fast pretrain --resume {shlex.quote(str(path))}")

    def _note_partial(self, metrics: EpochMetrics) -> None:
        """What a checkpoint in the middle of an epoch has more."""
        metrics.read()
        self._check_weights()
        self._partial = metrics.state()

    def _check_weights(self) -> None:
        """The last losses were of the weights before the last step.

        Raises:
            DivergedError: a weight that is not finite.
        """
        parameters = [parameter.detach() for peer in self.peers for parameter in peer.parameters()]
        if not torch.stack(torch._foreach_norm(parameters, torch.inf)).isfinite().all():
            raise DivergedError(
                f"the weights are not finite after step {self.steps} (epoch {self.epoch}); "
                "a lower --learning-rate may help"
            )

    def _write_weights(self, folder: RunFolder) -> None:
        about = {
            "image_size": str(self.data.image_size),
            "mean": str(list(self.data.mean)),
            "deviation": str(list(self.data.deviation)),
        }
        for number, (name, peer) in enumerate(zip(self.config.peers, self.peers, strict=True), 1):
            folder.write_peer(number, name, peer, about)

    # ------------------------------------------------------------------------------------------------- checkpoints

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
        random = _random_state(self.device) if self._fitting else self._random
        state = {
            "config": self.config.model_dump(mode="json"),
            "image_count": self.data.image_count,
            "image_size": self.data.image_size,
            "fingerprint": fingerprint(self.data.pretraining),
            "step": self.steps,
            "epoch": self.epoch,
            "position": self.position,
            "partial": self._partial,
            "history": self.history,
            "notes": self.notes,
            "peers": [peer.state_dict() for peer in self.peers],
            "optimisers": [optimiser.state_dict() for optimiser in self.step.optimisers],
            "scaler": self.step.scaler.state_dict(),
            "random": random,
        }
        return cast(dict[str, Any], tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), state))

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's content; the trajectory is that of the run that wrote it.

        Raises:
            UserError: settings that differ from that run's and would change the trajectory, or networks that do.
        """
        self._check_same_run(state)
        try:
            for peer, weights in zip(self.peers, state["peers"], strict=True):
                peer.load_state_dict(weights)
            for optimiser, saved in zip(self.step.optimisers, state["optimisers"], strict=True):
                _load_optimiser(optimiser, saved)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            self._whole = False
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the checkpoint does not fit these networks and optimisers ({reason})") from error
        self._whole = True
        self.step.scaler.load_state_dict(state["scaler"])
        self.step.graph, self._capture_tried = None, False  # it reads optimiser states that are gone
        self.steps, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.step.meters.start(self.steps)
        self.history, self.notes = list(state["history"]), dict(state["notes"])
        self._partial, self._random = state["partial"], state["random"]

    def _check_same_run(self, state: dict[str, Any]) -> None:
        count, size = self.data.image_count, self.data.image_size
        if state["image_count"] != count:
            raise UserError(
                f"--data-dir must hold the {state['image_count']} images of the run that is resumed, got {count}"
            )
        if state["image_size"] != size:
            raise UserError(
                f"--data-dir must hold the images of {state['image_size']} px of the run that is resumed, got {size} px"
            )
        own = fingerprint(self.data.pretraining)
        if None not in (own, state.get("fingerprint")) and own != state["fingerprint"]:
            raise UserError(
                "--data-dir must hold the images of the run that is resumed, got others of the same number and size"
            )
        self._check_settings(state["config"], "in the run that is resumed")

    def _check_settings(self, saved: dict[str, Any], where: str) -> None:
        for key, value in self.config.model_dump(mode="json").items():
            if key not in FREE_ON_RESUME and value != saved.get(key):
                option = key.replace("_", "-")
                told = self._whose_checkpoint(key, value)
                raise UserError(f"--{option} must be {saved.get(key)!r}, as {where}, got {value!r}{told}")

    def _whose_checkpoint(self, key: str, value: Any) -> str:
        """The file that a setting does not fit; where it lies beside another run's files, what to do."""
        path = self.resumed_from
        if path is None:
            return ""
        folder = run_of(path)
        own = None if folder is None else run_settings(folder)
        if own is None or own.get(key) != value:
            return f": see {path}"
        told = f": {path} is a checkpoint of another run than the one in {folder}"
        return f"{told}; move it elsewhere to go on with that one"

    # ----------------------------------------------------------------------------------------------------- helpers

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Networks that draw (dropout) draw the same in every run of a seed, and leave other people's draws alone."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            if self._random is None:
                torch.manual_seed(derive_seed(self.config.seed, "networks"))
            else:
                torch.set_rng_state(self._random["cpu"])
                if self.device.type == "cuda" and "cuda" in self._random:
                    torch.cuda.set_rng_state(self._random["cuda"], self.device)
            self._fitting = True
            try:
                yield
            finally:
                self._fitting = False
                self._random = _random_state(self.device)

    def _open_loggers(self, folder: RunFolder | None) -> Sequence[Logger]:
        if folder is None:
            return []
        config = self.config
        return open_loggers(
            folder.path, config.tensorboard, config.wandb, config.model_dump(mode="json"), self.steps + 1
        )

    def _progress_bar(self) -> "tqdm[Any]":
        """On a terminal lively, in a log file a line now and then."""
        interval = 0.2 if sys.stderr is not None and sys.stderr.isatty() else 30.0
        each = len(self.loader) * self.config.batch_size
        return tqdm(
            total=self.config.epochs * each,
            initial=self.steps * self.config.batch_size,
            unit=" images",
            file=None if sys.stderr is None else BestEffort(sys.stderr),
            disable=sys.stderr is None,
            mininterval=interval,
            dynamic_ncols=True,
        )


def choose_recipe(recipe: str | ViewRecipe, data: DataSet) -> ViewRecipe:
    """The recipe itself, or the one of that name; ``"auto"`` is the one for the data set."""
    if isinstance(recipe, ViewRecipe):
        return recipe
    if recipe == "auto":
        recipe = "cifar" if data.image_size <= SMALL_PHOTOGRAPH else "simclr"
        recipe = data.name if data.name in VIEW_RECIPES else recipe
    return VIEW_RECIPES[recipe]


def find_resumed(config: PretrainConfig) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that ``config.resume`` means, and its content; None to start from the beginning.

    Raises:
        UserError: ``auto`` without an output folder, a path that is not there, or only checkpoints that are refused.
    """
    if config.resume is None:
        return None
    if config.resume == "auto":
        if config.out is None:
            raise UserError("--resume auto needs --out, the folder whose run is to go on, got none")
        return find_checkpoint(config.out, None, warnings.warn)
    path = Path(config.resume)
    if not path.is_file():
        hint = f", a checkpoint in a folder {FOLDER}" if path.is_dir() else ""
        raise UserError(f"--resume must be auto or an existing file{hint}, got {path}")
    return find_checkpoint(None, path, warnings.warn)


def fingerprint(images: Tensor | ImageSource) -> int | None:
    """A checksum of 64 resident images, evenly spread; None of images that stream, which would have to be decoded."""
    if not isinstance(images, Tensor):
        return None
    chosen = torch.linspace(0, len(images) - 1, min(64, len(images))).long()
    return zlib.crc32(images[chosen.to(images.device)].cpu().numpy().tobytes())


def _check_parameters(peers: Sequence[Peer]) -> None:
    first, second = (set(peer.parameters()) for peer in peers)
    if first & second:
        raise ValueError("backbones must not share parameters: each peer has an optimiser of its own")
    if set(peers[0].buffers()) & set(peers[1].buffers()):
        raise ValueError("backbones must not share buffers: each peer has batch norms of its own")
    for parameter in first | second:
        if parameter.dtype != torch.float32:
            raise ValueError(f"backbones must have float32 parameters (precision is an option), got {parameter.dtype}")


def _as_data_set(data: Tensor | DataSet | ImageSource) -> DataSet:
    if not isinstance(data, Tensor | DataSet | ImageSource):
        raise TypeError(f"data must be a tensor, a DataSet or an ImageSource, got {type(data).__name__}")
    if isinstance(data, DataSet):
        images = data.pretraining
        if isinstance(images, Tensor) and not images.is_contiguous():
            data = replace(data, pretraining=images.contiguous())
        return data
    if isinstance(data, Tensor) and (data.dtype != torch.uint8 or data.dim() != 4 or data.shape[1] != 3):
        raise ValueError(f"data must be images uint8 [N, 3, H, W], got {data.dtype} {tuple(data.shape)}")
    if isinstance(data, Tensor) and data.shape[2] != data.shape[3]:
        raise ValueError(f"data must be square images, got {tuple(data.shape)}")
    images = data.contiguous() if isinstance(data, Tensor) else data
    return DataSet("images", images, None, None, ())


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state if device.type == "cpu" else state | {"cuda": torch.cuda.get_rng_state(device)}


def _load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load, but keep the learning rates' tensors, which lie on the device, and what only suits the device."""
    rates = [group["lr"] for group in optimiser.param_groups]
    state = copy.deepcopy(state)  # it would take the tensors themselves
    for group, saved in zip(optimiser.param_groups, state["param_groups"], strict=True):
        saved.update({key: group[key] for key in ("fused", "foreach", "capturable") if key in group})
    optimiser.load_state_dict(state)
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        rate.copy_(torch.as_tensor(group["lr"]))
        group["lr"] = rate

"""What of a run is kept, and gone on from: where it stands and all that the rest of it depends on."""

import copy
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dogo_fast.data import DataSet, Images, ImageSource, IterableSource
from dogo_fast.errors import UserError
from dogo_fast.peers import Peer
from dogo_fast.philox import derive_seed
from dogo_fast.private import tree_map_only
from dogo_fast.training.checkpoint import FOLDER, CheckpointFolder, find_checkpoint, run_of
from dogo_fast.training.config import FREE_ON_RESUME, PretrainConfig
from dogo_fast.training.run_folder import RunFolder, run_settings
from dogo_fast.training.step import TrainingStep


class Progress:
    """Where a run stands: ``state()`` is what its checkpoints hold, ``load(state)`` goes on from there.

    Args:
        config: resolved.
        data: what is trained on.
        step: with the networks, the optimisers and the scaler.
        resumed_from: the checkpoint that will be loaded, for messages; or None.

    Attributes:
        steps: done.
        epoch, position: of the next step, from 1; where in the epoch's order of images it begins.
        history: a row of metrics for each epoch that is over.
        notes: what others want to find again.
        partial: the metrics of the present epoch so far, where it is to be gone on with in its middle; or None.
        whole: false from the beginning of a step to its end, and after an exception has left one in its middle.
    """

    def __init__(
        self, config: PretrainConfig, data: DataSet, step: TrainingStep, resumed_from: Path | None = None
    ) -> None:
        self.config, self.data, self.step, self.resumed_from = config, data, step, resumed_from
        self.steps = 0
        self.epoch, self.position = 1, 0
        self.history: list[dict[str, float]] = []
        self.notes: dict[str, Any] = {}
        self.partial: dict[str, Any] | None = None
        self.whole = True
        self._looked_at = [] if config.out is None else CheckpointFolder(config.out).files()
        self._random: dict[str, Tensor] | None = None
        self._drawing = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: copies, on the CPU."""
        state = {
            "config": self.config.model_dump(mode="json"),
            "image_count": self.data.image_count,
            "view_size": self.data.view_size,
            "normalisation": [list(self.data.mean), list(self.data.deviation)],
            "fingerprint": fingerprint(self.data.pretraining),
            "step": self.steps,
            "epoch": self.epoch,
            "position": self.position,
            "partial": self.partial,
            "history": self.history,
            "notes": self.notes,
            "peers": [peer.state_dict() for peer in self.step.peers],
            "optimisers": [optimiser.state_dict() for optimiser in self.step.optimisers],
            "scaler": self.step.scaler.state_dict(),
            "random": _random_state(self.step.device) if self._drawing else self._random,
        }
        return cast(dict[str, Any], tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), state))

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            UserError: settings or images that differ from that run's and would change the trajectory, or networks that
                do.
        """
        self._check_images(state)
        self.check_settings(state["config"], "in the run that is resumed")
        try:
            for peer, weights in zip(self.step.peers, state["peers"], strict=True):
                peer.load_state_dict(weights)
            for optimiser, saved in zip(self.step.optimisers, state["optimisers"], strict=True):
                _load_optimiser(optimiser, saved)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            self.whole = False
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the checkpoint does not fit these networks and optimisers ({reason})") from error
        self.whole = True
        self.step.scaler.load_state_dict(state["scaler"])
        self.step.graph = None  # it reads optimiser states that are gone
        self.steps, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.step.meters.start(self.steps)
        self.history, self.notes = list(state["history"]), dict(state["notes"])
        self.partial, self._random = state["partial"], state["random"]

    def open_folder(self) -> RunFolder:
        """The folder of ``config.out``: that of the run that is resumed, or a new or empty one.

        Raises:
            UserError: any other folder, or none given.
        """
        out = self.config.out
        if out is None:
            raise UserError("`out` must be given to write to, got none")
        settings = run_settings(out)
        if settings is not None and self.resumed_from is None:
            where = "which has checkpoints" if self._looked_at else "which has no checkpoint"
            advice = "; go on with it by `resume` auto and its settings, or choose another `out`" * bool(
                self._looked_at
            )
            self.check_settings(settings, f"in the run that `out` names, {out}, {where}", advice)
        source = None if self.resumed_from is None else run_of(self.resumed_from)
        same = source is not None and source.resolve() == out.resolve()
        starting = self.config.resume == "auto" and self.resumed_from is None
        return RunFolder(out, same or starting, self._looked_at)

    @contextmanager
    def own_random_numbers(self) -> Iterator[None]:
        """Networks that draw (dropout) draw the same in every run of a seed, and leave other people's draws alone."""
        device = self.step.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if self._random is None:
                torch.manual_seed(derive_seed(self.config.seed, "networks"))
            else:
                torch.set_rng_state(self._random["cpu"])
                if device.type == "cuda" and "cuda" in self._random:
                    torch.cuda.set_rng_state(self._random["cuda"], device)
            self._drawing = True
            try:
                yield
            finally:
                self._drawing = False
                self._random = _random_state(device)

    # ------------------------------------------------------------------------------------- what must be the same

    def check_settings(self, saved: dict[str, Any], where: str, advice: str = "") -> None:
        """Refuse settings other than the saved ones, which would change the trajectory.

        Raises:
            UserError: it names the setting, ``where`` and the file.
        """
        for key, value in self.config.model_dump(mode="json").items():
            if key == "epochs" and value != saved.get(key) and self.resumed_from is not None:
                told = f": the learning rate follows a schedule of {saved.get(key)} epochs"
                advice = "; `start_from` begins a new run with the weights of this one"
                raise UserError(f"`{key}` must be {saved.get(key)!r}, as {where}, got {value!r}{told}{advice}")
            if key not in FREE_ON_RESUME and value != saved.get(key):
                told = self._whose_checkpoint(key, value)
                raise UserError(f"`{key}` must be {saved.get(key)!r}, as {where}, got {value!r}{told}{advice}")

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

    def _check_images(self, state: dict[str, Any]) -> None:
        count, size = self.data.image_count, self.data.view_size
        told = None
        if state["image_count"] != count:
            told = f"the {state['image_count']} images of the run that is resumed, got {count}"
        elif state["view_size"] != size:
            told = f"images for the views of {state['view_size']} px of the run that is resumed, got {size} px"
        else:
            own = fingerprint(self.data.pretraining)
            if None not in (own, state.get("fingerprint")) and own != state["fingerprint"]:
                told = "the images of the run that is resumed, got others of the same number and size"
        if told is not None:
            raise UserError(f"`data_dir` must hold {told}")


def find_resumed(config: PretrainConfig) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that ``config.resume`` means, and its content; None to start from the beginning.

    Raises:
        UserError: ``auto`` without an output folder, a path that is not there, or only checkpoints that are refused.
    """
    if config.resume is None:
        return None
    if config.resume == "auto":
        if config.out is None:
            raise UserError("`resume` auto needs `out`, the folder whose run is to go on, got none")
        return find_checkpoint(config.out, None, warnings.warn)
    path = Path(config.resume)
    if not path.is_file():
        hint = f", a checkpoint in a folder {FOLDER}" if path.is_dir() else ""
        raise UserError(f"`resume` must be auto or an existing file{hint}, got {path}")
    return find_checkpoint(None, path, warnings.warn)


def start_from(path: Path, peers: Sequence[Peer], names: Sequence[str]) -> Path:
    """Give both peers the weights, heads included, of a run's newest checkpoint, or of a checkpoint; returns which.

    Raises:
        UserError: no checkpoint there, or one of other networks.
    """
    found = find_checkpoint(path, None, warnings.warn) if path.is_dir() else None
    if path.is_file():
        found = find_checkpoint(None, path, warnings.warn)
    if found is None:
        raise UserError(f"`start_from` must be a run folder with checkpoints, or a checkpoint, got {path}")
    checkpoint, state = found
    for number, (peer, name, weights) in enumerate(zip(peers, names, state["peers"], strict=True), 1):
        theirs = state["config"]["peers"][number - 1]
        try:
            peer.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"`start_from` must be a run of the same networks, got {path}, whose peer {number} is {theirs} and "
                f"does not fit this run's {name} ({reason})"
            ) from None
    return checkpoint


def folder_of(config: PretrainConfig) -> Path | None:
    """Where a run writes: ``out``, else the run folder of the checkpoint that is resumed, if it lies in one."""
    if config.out is not None or config.resume in (None, "auto"):
        return config.out
    return run_of(Path(config.resume))


def fingerprint(images: Images | ImageSource | IterableSource) -> int | None:
    """A checksum of 64 resident images, evenly spread; None of images that stream, which would have to be decoded."""
    if isinstance(images, ImageSource | IterableSource):
        return None
    chosen = torch.linspace(0, len(images) - 1, min(64, len(images))).long().tolist()
    return zlib.crc32(b"".join(images[number].cpu().numpy().tobytes() for number in chosen))


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

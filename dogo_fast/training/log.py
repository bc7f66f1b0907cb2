"""Where metrics go besides metrics.csv: a bar on the terminal; TensorBoard and Weights & Biases, when asked for."""

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from dogo_fast.errors import UserError


class BestEffort:
    """A text stream whose reader may go away: what it no longer takes is dropped, since the training goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def progress_bar(images: int, done: int) -> "tqdm[Any]":
    """Over so many images, of which so many are done: on a terminal lively, in a log file a line now and then."""
    interval = 0.2 if sys.stderr is not None and sys.stderr.isatty() else 30.0
    return tqdm(
        total=images,
        initial=done,
        unit=" images",
        file=None if sys.stderr is None else BestEffort(sys.stderr),
        disable=sys.stderr is None,
        mininterval=interval,
        dynamic_ncols=True,
    )


class Logger(Protocol):
    """Takes the row of an epoch."""

    def write(self, row: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardLogger:
    """Scalars under RUN/tensorboard, by step; what an interrupted run wrote after its checkpoint is purged."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, row: dict[str, float], step: int) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """A run named after the folder; resumed under the same identifier. wandb's own environment variables say where it
    goes (WANDB_MODE=offline: nowhere)."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project="dogo_fast", id=folder.name, name=folder.name, dir=str(folder), config=config, resume="allow"
        )

    def write(self, row: dict[str, float], step: int) -> None:
        self.run.log(row, step=step)

    def close(self) -> None:
        self.run.finish()


def check_installed(tensorboard: bool, wandb: bool) -> None:
    """Refuse what was asked for and is not there.

    Raises:
        UserError: the message says how to install it.
    """
    for asked, name in ((tensorboard, "tensorboard"), (wandb, "wandb")):
        if asked and importlib.util.find_spec(name) is None:
            raise UserError(f"`{name}` needs the package {name}, which is not installed: pip install {name}")


def open_loggers(
    folder: Path, tensorboard: bool, wandb: bool, config: dict[str, Any], first_step: int
) -> Sequence[Logger]:
    """What was asked for, checked already; the run goes on from ``first_step``."""
    loggers: list[Logger] = []
    if tensorboard:
        loggers.append(TensorBoardLogger(folder, first_step))
    if wandb:
        loggers.append(WandbLogger(folder, config))
    return loggers

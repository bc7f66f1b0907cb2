"""Losses stay on the device; they are read every few steps, because each reading waits for the device."""

import math
import time

import torch
from torch import Tensor

from dogo_fast import DoGoLossOutput
from dogo_fast.errors import DivergedError

READ_EVERY = 10
"""Steps."""


class EpochMetrics:
    """Collects the losses of one epoch: add each step, read the means at the end.

    Args:
        epoch: from 1.
        first_step: the number of this epoch's first step in the run, from 1.
    """

    def __init__(self, epoch: int, first_step: int) -> None:
        self.epoch = epoch
        self.next_step = first_step
        self.pending: list[Tensor] = []
        self.rows: list[list[float]] = []
        self.start = time.perf_counter()

    def add(self, output: DoGoLossOutput) -> bool:
        """Keep the losses of one step; true if they were read just now.

        Raises:
            DivergedError: one of the steps since the last reading had a loss that is not finite.
        """
        self.pending.append(torch.stack(output).detach())
        if len(self.pending) == READ_EVERY:
            self._read()
        return not self.pending

    def latest(self) -> dict[str, float]:
        """The losses of the step read last, by name."""
        return dict(zip(DoGoLossOutput._fields, self.rows[-1], strict=True))

    def finish(self, images: int, learning_rate: float) -> dict[str, float]:
        """A row of metrics.csv: the mean losses, and the pace over ``images`` images (each seen in four views)."""
        self._read()
        seconds = time.perf_counter() - self.start
        means = [math.fsum(column) / len(self.rows) for column in zip(*self.rows, strict=True)]
        return {
            "epoch": self.epoch,
            **dict(zip(DoGoLossOutput._fields, means, strict=True)),
            "images_per_second": images / seconds,
            "learning_rate": learning_rate,
            "seconds": seconds,
        }

    def _read(self) -> None:
        if not self.pending:
            return
        for row in torch.stack(self.pending).tolist():
            if not all(map(math.isfinite, row)):
                losses = ", ".join(f"{name} {value:g}" for name, value in zip(DoGoLossOutput._fields, row, strict=True))
                raise DivergedError(
                    f"the loss is not finite at step {self.next_step} (epoch {self.epoch}): {losses}; "
                    "a lower --learning-rate or higher temperatures may help"
                )
            self.rows.append(row)
            self.next_step += 1
        self.pending.clear()

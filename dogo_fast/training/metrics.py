"""Losses stay on the device; they are read now and then, because each reading waits for the device."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from dogo_fast import private
from dogo_fast.errors import DivergedError
from dogo_fast.training.step import Meters

clock = time.perf_counter

READ_EVERY = 50
"""Steps between two readings on a GPU; on a CPU reading is free, and every step is read."""


class EpochMetrics:
    """What an epoch's row is made of.

    Args:
        meters: of the step; its sums are set to zero.
        epoch: from 1.
    """

    def __init__(self, meters: Meters, epoch: int) -> None:
        self.meters, self.epoch = meters, epoch
        self.meters.sums.zero_()
        self.steps = self.images = 0
        self.seconds = self.waited = 0.0
        self.start = clock()
        self._read_steps, self._read_sums = 0, [0.0] * len(meters.names)

    def add(self, images: int, waited: float) -> None:
        """Count one step over so many images that waited so many seconds for its batch."""
        self.steps += 1
        self.images += images
        self.waited += waited

    def read(self) -> dict[str, float]:
        """Mean losses of the steps since the last reading.

        Raises:
            DivergedError: one of the steps of the run had a loss that is not finite; the message names the first.
        """
        bad = int(self.meters.first_bad)
        if bad:
            values = zip(self.meters.names, self.meters.bad_losses.tolist(), strict=True)
            losses = ", ".join(f"{name} {value:g}" for name, value in values)
            raise DivergedError(
                f"the loss is not finite at step {bad} (epoch {self.epoch}): {losses}; "
                "a lower `learning_rate` or higher temperatures may help"
            )
        sums = self.meters.sums.tolist()
        steps = max(1, self.steps - self._read_steps)
        means = [(now - before) / steps for now, before in zip(sums, self._read_sums, strict=True)]
        self._read_steps, self._read_sums = self.steps, sums
        return dict(zip(self.meters.names, means, strict=True))

    def wait_share(self) -> float:
        """Share of the time so far that was spent waiting for data, 0 … 1."""
        return self.waited / max(self.elapsed(), 1e-9)

    def elapsed(self) -> float:
        """Seconds, those before an interruption included."""
        return self.seconds + clock() - self.start

    def row(self, learning_rates: Sequence[float]) -> dict[str, float]:
        """A row of metrics.csv: mean losses over the epoch, the pace over its images (each seen in four views), the
        learning rates of the epoch's first step."""
        self.read()
        seconds = self.elapsed()
        means = [value / max(1, self.steps) for value in self.meters.sums.tolist()]
        assert all(map(math.isfinite, means))
        return {
            "epoch": self.epoch,
            **dict(zip(self.meters.names, means, strict=True)),
            "images_per_second": self.images / seconds,
            "data_wait": self.waited / seconds,
            **{f"learning_rate_{peer}": rate for peer, rate in enumerate(learning_rates, 1)},
            "seconds": seconds,
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint in the middle of the epoch."""
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "images": self.images,
            "waited": self.waited,
            "seconds": self.elapsed(),
            "sums": self.meters.sums.cpu().clone(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps, self.images = state["steps"], state["images"]
        self.waited, self.seconds = state["waited"], state["seconds"]
        self.meters.sums.copy_(state["sums"])
        self._read_steps, self._read_sums = self.steps, self.meters.sums.tolist()


def check_weights(peers: Iterable[nn.Module], steps: int, epoch: int) -> None:
    """The last losses were of the weights before the last step.

    Raises:
        DivergedError: a weight that is not finite, after so many steps, in this epoch.
    """
    parameters = [parameter.detach() for peer in peers for parameter in peer.parameters()]
    if not torch.stack(private.foreach_norm(parameters, torch.inf)).isfinite().all():
        raise DivergedError(
            f"the weights are not finite after step {steps} (epoch {epoch}); a lower `learning_rate` may help"
        )

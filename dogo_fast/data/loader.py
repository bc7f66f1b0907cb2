"""The loader of a data set that lies whole on the device: shuffling is an index, nothing is copied twice."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from dogo_fast.errors import UserError
from dogo_fast.philox import permutation
from dogo_fast.pictures import Pictures


class Batch(NamedTuple):
    """Some images of an epoch, on the device."""

    pictures: Pictures
    """Those of the batch, B of them."""
    indices: Tensor
    """int64 [B]: their numbers in the data set."""
    position: int
    """How many entries of the epoch's order are used up, this batch included."""


def check_batch_size(batch_size: int, image_count: int) -> None:
    """Raises UserError for a batch size below 2 or above the number of images."""
    if not 2 <= batch_size <= image_count:
        raise UserError(f"`batch_size` must be from 2 to {image_count}, the number of images, got {batch_size}")


class ResidentLoader:
    """Each epoch visits the images once in a new random order, the last incomplete batch dropped.

    Args:
        images: uint8 [N, 3, H, W], or pictures.
        batch_size: images a batch, from 2 to N.
        seed: the order of an epoch is ``permutation(seed, epoch, N)``, whatever the device.

    Raises:
        UserError: a batch size below 2 or above N.
    """

    def __init__(self, images: Tensor | Pictures, batch_size: int, seed: int) -> None:
        check_batch_size(batch_size, len(images))
        self.pictures = Pictures.of(images)
        self.batch_size = batch_size
        self.image_count = len(images)
        self.seed = seed
        self.damaged: dict[int, str] = {}
        """Always empty: what resides is decoded."""

    def __len__(self) -> int:
        return self.image_count // self.batch_size

    def epoch(self, epoch: int, position: int = 0, step: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch, or those that are left of it.

        Args:
            epoch: number of the epoch, which its order depends on.
            position: of the last batch used; 0 for none.
            step: how many batches that were, which follows from ``position`` here.

        Raises:
            ValueError: ``position`` is not that of a batch of this epoch.
        """
        first, rest = divmod(position, self.batch_size)
        if rest or not 0 <= first <= len(self) or step not in (None, first):
            raise ValueError(f"position must be that of a batch of this epoch, got {position} (step {step})")
        order = permutation(self.seed, epoch, self.image_count, self.pictures.device)
        for number, rows in enumerate(order.split(self.batch_size)[first : len(self)], first + 1):
            yield Batch(self.pictures.select(rows), rows, number * self.batch_size)

    def close(self) -> None:
        """Nothing to end; there for its likeness to ``StreamingLoader``."""

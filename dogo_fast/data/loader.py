"""The loader of a data set that lies whole on the device: shuffling is an index, nothing is copied twice."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dogo_fast.errors import UserError


class Loader:
    """Each iteration over it is one epoch: batches of images in a new random order, the last incomplete one dropped.

    Args:
        images: uint8 [N, 3, H, W].
        batch_size: images a batch, from 2 to N.
        generator: the source of the order, on the CPU, so that a seed means the same order on every device.

    Raises:
        UserError: a batch size below 2 or above N.
    """

    def __init__(self, images: Tensor, batch_size: int, generator: torch.Generator) -> None:
        if not 2 <= batch_size <= len(images):
            raise UserError(f"--batch-size must be from 2 to {len(images)}, the number of images, got {batch_size}")
        self.images = images
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images), generator=self.generator).to(self.images.device)
        for step in range(len(self)):
            yield self.images[order[step * self.batch_size : (step + 1) * self.batch_size]]

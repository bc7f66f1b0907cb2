"""Images and labels, as tensors or as a source to stream."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dogo_fast.data.source import ImageSource


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, 3, H, W] in 0 … 255 and their labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device) -> "Split":
        """The same on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """Images to pretrain on, labelled ones to evaluate with, and what the labels mean.

    What is resident is a uint8 tensor [N, 3, H, W] or a ``Split`` of one; what streams is an ``ImageSource``. Where the
    pretraining images are those of ``train``, both are the same tensor or source. ``train`` and ``test`` are None where
    there are no labels. ``mean`` and ``deviation`` are those of the channels, in [0, 1], to normalise by.
    """

    name: str
    pretraining: Tensor | ImageSource
    train: Split | ImageSource | None
    test: Split | ImageSource | None
    class_names: tuple[str, ...]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def image_size(self) -> int:
        """Height and width, pixels."""
        return self.pretraining.shape[-1] if isinstance(self.pretraining, Tensor) else self.pretraining.size

    @property
    def image_count(self) -> int:
        """How many images there are to pretrain on."""
        return len(self.pretraining)

    def to(self, device: torch.device) -> "DataSet":
        """The same with what is resident on ``device``; what streams is left as it is."""
        pretraining = self.pretraining.to(device) if isinstance(self.pretraining, Tensor) else self.pretraining

        def move(part: Split | ImageSource | None) -> Split | ImageSource | None:
            if not isinstance(part, Split):
                return part
            if isinstance(pretraining, Tensor) and part.images is self.pretraining:
                return Split(pretraining, part.labels.to(device))
            return part.to(device)

        return replace(self, pretraining=pretraining, train=move(self.train), test=move(self.test))

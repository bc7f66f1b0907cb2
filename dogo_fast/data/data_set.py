"""Images and labels as tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, 3, H, W] in 0 … 255 and their labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """A training and a test split, and what the labels mean."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def image_size(self) -> int:
        """Height and width, pixels."""
        return self.train.images.shape[-1]

    def to(self, device: torch.device) -> "DataSet":
        return DataSet(self.name, self.train.to(device), self.test.to(device), self.class_names)


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1], laid out channels-last, in which convolutions are fastest."""
    return images.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)

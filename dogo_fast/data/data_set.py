"""Images and labels, as tensors, as pictures of any sizes or as a source to stream."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dogo_fast.data.iterable import IterableSource
from dogo_fast.data.source import ImageSource, PictureSource, SubsetSource
from dogo_fast.pictures import Pictures

Images = Tensor | Pictures
"""What is resident: uint8 [N, 3, H, W] in 0 … 255, or N pictures of any sizes."""
SAMPLE = 16
"""Images looked at to learn whether all are squares of one size."""
LARGEST_OWN_SIZE = 224
"""Pixels: the side of views of anything but squares of one size that is no larger."""


@dataclass(frozen=True)
class Split:
    """Images and their labels int64 [N]."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Split":
        """The same on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))

    def select(self, indices: Tensor) -> "Split":
        """Some of them, int64 [B]."""
        rows = indices.to(self.labels.device)
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.select(rows)
        return Split(images, self.labels[rows])


@dataclass(frozen=True)
class DataSet:
    """Images to pretrain on, labelled ones to evaluate with, and what the labels mean.

    What is resident is a uint8 tensor [N, 3, H, W], ``Pictures`` of several sizes, or a ``Split`` of one of them; what
    streams is an ``ImageSource``, or an ``IterableSource`` to pretrain on. Where the pretraining images are those of
    ``train``, both are the same object.
    ``train`` and ``test`` are None where there are no labels. ``mean`` and ``deviation`` are those of the channels, in
    [0, 1], to normalise by. ``view_size`` is the side of the views, pixels; 0 stands for that of the images if a sample
    of 16 are all squares of the same size up to 224, else 224. ``photographs`` says whether they are no such squares;
    then evaluation sees the middle of each, as torchvision's for ImageNet. ``notes``: what a folder was understood as,
    and what was left out. A label below 0 is none: such images are trained on, and left out of the scores.
    """

    name: str
    pretraining: Images | ImageSource | IterableSource
    train: Split | ImageSource | None
    test: Split | ImageSource | None
    class_names: tuple[str, ...]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)
    view_size: int = 0
    photographs: bool | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.view_size or self.photographs is None:
            own = own_side(self.pretraining)
            object.__setattr__(self, "view_size", self.view_size or own or LARGEST_OWN_SIZE)
            object.__setattr__(self, "photographs", own is None)

    @property
    def image_count(self) -> int:
        """How many images there are to pretrain on."""
        return len(self.pretraining)

    def select(self, indices: Tensor, test: Tensor | None = None) -> "DataSet":
        """The same with some of the training images alone, which are pretrained on too; and, instead of the test
        images, with others of the training images, where ``test`` says which.

        Raises:
            ValueError: a data set without labels.
        """
        if self.train is None:
            raise ValueError(f"data must have labelled training images, {self.name} has none")
        train, tested = part_of(self.train, indices), self.test if test is None else part_of(self.train, test)
        pretraining = train.images if isinstance(train, Split) else train
        return replace(self, pretraining=pretraining, train=train, test=tested)

    def to(self, device: torch.device) -> "DataSet":
        """The same with what is resident on ``device``; what streams is left as it is."""
        pretraining = self.pretraining
        if not isinstance(pretraining, ImageSource | IterableSource):
            pretraining = pretraining.to(device)

        def move(part: Split | ImageSource | None) -> Split | ImageSource | None:
            if not isinstance(part, Split):
                return part
            if part.images is self.pretraining and not isinstance(pretraining, ImageSource | IterableSource):
                return Split(pretraining, part.labels.to(device))
            return part.to(device)

        return replace(self, pretraining=pretraining, train=move(self.train), test=move(self.test))


def part_of(part: Split | ImageSource, indices: Tensor) -> Split | ImageSource:
    """Some of a split's images, int64 [B]."""
    return part.select(indices) if isinstance(part, Split) else SubsetSource(part, indices)


def own_side(images: Images | ImageSource | IterableSource) -> int | None:
    """The side of the images if a sample are all squares of the same size up to 224 pixels, else None."""
    if isinstance(images, IterableSource):
        sides = {tuple(image.shape[-2:]) for image in images.sample(SAMPLE)}
    else:
        source = images if isinstance(images, ImageSource) else PictureSource(images)
        count = min(SAMPLE, len(source))
        sides = set()
        for place in range(count):
            try:
                sides.add(tuple(source.decode(place * len(source) // count).shape[-2:]))
            except Exception:  # a damaged image: it is named when it is read
                continue
    height, width = sides.pop() if len(sides) == 1 else (0, 0)
    return height if 0 < height == width <= LARGEST_OWN_SIZE else None

"""Whether a data set is decoded once and resides on the device, or is decoded anew whenever it is read."""

from dataclasses import replace

import torch
from torch import Tensor

from dogo_fast.data.data_set import DataSet, Split
from dogo_fast.data.decoding import decode_all
from dogo_fast.data.source import ImageSource, TensorSource
from dogo_fast.errors import UserError

RESIDENCES = ("auto", "device", "stream")
"""What may be done with a data set; "auto" decides by its size."""
RESIDENT_BYTES = 4 * 2**30
"""The most decoded bytes, all splits together, that residence "auto" keeps on the device."""


def settle(data: DataSet, image_size: int | None, residence: str, workers: int) -> DataSet:
    """The data set as tensors or as sources, with images of ``image_size`` (None: as they are).

    Args:
        data: as loaded, tensors or sources.
        residence: "device" for tensors, "stream" for sources, "auto" for tensors up to ``RESIDENT_BYTES``.
        workers: processes to decode with.

    Raises:
        UserError: more than 1 % of the images are damaged, or a worker died.
    """
    train = None if data.train is None else _as_source(data.train, image_size)
    test = None if data.test is None else _as_source(data.test, image_size)
    if train is not None and (data.pretraining is data.train or data.pretraining is _images(data.train)):
        pretraining = train
    else:
        pretraining = _as_source(data.pretraining, image_size)
    parts = {id(part): part for part in (pretraining, train, test) if part is not None}
    size = sum(len(part) * 3 * part.size**2 for part in parts.values())
    if residence == "stream" or (residence == "auto" and size > RESIDENT_BYTES):
        return replace(data, pretraining=pretraining, train=train, test=test)
    train_split = None if train is None else _decode_split(train, workers)
    return replace(
        data,
        pretraining=train_split.images
        if train_split is not None and pretraining is train
        else _decode_images(pretraining, workers)[0],
        train=train_split,
        test=None if test is None else _decode_split(test, workers),
    )


def _images(part: Split | ImageSource | None) -> Tensor | None:
    return part.images if isinstance(part, Split) else None


def _as_source(part: Tensor | Split | ImageSource, image_size: int | None) -> ImageSource:
    if isinstance(part, ImageSource):
        return part  # made with its size
    images, labels = (part.images, part.labels) if isinstance(part, Split) else (part, None)
    return TensorSource(images, labels, image_size or images.shape[-1])


def _decode_split(source: ImageSource, workers: int) -> Split:
    images, numbers = _decode_images(source, workers)
    if source.labels is None:
        raise UserError("a training or test split must have labels")
    return Split(images, source.labels if len(numbers) == len(source.labels) else source.labels[numbers])


def _decode_images(source: ImageSource, workers: int) -> tuple[Tensor, Tensor]:
    if isinstance(source, TensorSource) and source.images.shape[-2:] == (source.size, source.size):
        return source.images, torch.arange(len(source))  # they are decoded already
    return decode_all(source, workers)

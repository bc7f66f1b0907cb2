"""Whether a data set is decoded once and resides on the device, or is decoded anew whenever it is read."""

from dataclasses import replace

import torch
from torch import Tensor

from dogo_fast.data.data_set import SAMPLE, DataSet, Images, Split
from dogo_fast.data.decoding import decode_all
from dogo_fast.data.iterable import IterableSource
from dogo_fast.data.source import ImageSource, PictureSource
from dogo_fast.errors import DamagedImageError, UserError

RESIDENCES = ("auto", "device", "stream")
"""What may be done with a data set; "auto" decides by its size."""
RESIDENT_BYTES = 4 * 2**30
"""The most decoded bytes, all splits together, that residence "auto" keeps on the device."""


def settle(data: DataSet, decode_size: int, residence: str, workers: int) -> DataSet:
    """The data set as tensors or pictures, or as sources.

    Args:
        data: as loaded, tensors or sources.
        decode_size: what the shorter side of larger images is shrunk to, pixels.
        residence: "device" for what resides, "stream" for sources, "auto" for what resides up to ``RESIDENT_BYTES``, by
            the sizes of a sample.
        workers: processes to decode with.

    Raises:
        UserError: more than 1 % of the images are damaged, or a worker died.
    """
    assert not isinstance(data.pretraining, IterableSource)  # no data set by name is one
    train = None if data.train is None else _as_source(data.train, decode_size)
    test = None if data.test is None else _as_source(data.test, decode_size)
    shared = data.train is not None and (data.pretraining is data.train or data.pretraining is _images(data.train))
    pretraining = train if shared and train is not None else _as_source(data.pretraining, decode_size)
    parts = {id(part): part for part in (pretraining, train, test) if part is not None}
    streams = residence == "stream" or (residence == "auto" and sum(map(_bytes, parts.values())) > RESIDENT_BYTES)
    if streams:
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


def _images(part: Split | ImageSource | None) -> Images | None:
    return part.images if isinstance(part, Split) else None


def _as_source(part: Images | Split | ImageSource, decode_size: int) -> ImageSource:
    if isinstance(part, Split):
        part = PictureSource(part.images, part.labels)
    elif not isinstance(part, ImageSource):
        part = PictureSource(part)
    part.decode_size = decode_size
    return part


def _bytes(source: ImageSource) -> float:
    """Decoded, by a sample that is spread over it."""
    if isinstance(source, PictureSource) and isinstance(source.pictures, Tensor):
        return source.pictures.numel()
    sizes = []
    count = min(SAMPLE, len(source))
    for place in range(count):
        try:
            sizes.append(source.read(place * len(source) // count).numel())
        except DamagedImageError:  # it is named when it is read
            continue
    return len(source) * sum(sizes) / max(1, len(sizes))


def _decode_split(source: ImageSource, workers: int) -> Split:
    images, numbers = _decode_images(source, workers)
    if source.labels is None:
        raise UserError("a training or test split must have labels")
    return Split(images, source.labels if len(numbers) == len(source.labels) else source.labels[numbers])


def _decode_images(source: ImageSource, workers: int) -> tuple[Images, Tensor]:
    pictures = source.pictures if isinstance(source, PictureSource) else None
    if isinstance(pictures, Tensor) and min(pictures.shape[2:]) <= source.decode_size:
        return pictures, torch.arange(len(source))  # they are decoded already
    return decode_all(source, workers)

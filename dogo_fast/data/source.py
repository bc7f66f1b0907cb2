"""Images that are decoded when they are asked for: from files, from tensors, from any map-style data set."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from dogo_fast.data.pixels import decode, open_file, shrink
from dogo_fast.errors import DamagedImageError, UserError
from dogo_fast.pictures import Pictures

LOG = logging.getLogger("dogo_fast")

IMAGE_KEYS = ("image", "img", "images", "picture", "photo", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "class", "cls", "category", "coarse_label")
KNOWN = {
    "DatasetFolder": "samples",
    **dict.fromkeys(("CIFAR10", "MNIST", "USPS"), "targets"),
    **dict.fromkeys(("SVHN", "STL10"), "labels"),
    **dict.fromkeys(("Food101", "DTD", "Flowers102", "FGVCAircraft", "SUN397"), "_labels"),
    **dict.fromkeys(("GTSRB", "StanfordCars", "Imagenette"), "_samples"),
}
"""Of torchvision's classes that say what an item is, the attribute that its label is taken from."""
TRIES = 100
"""Items looked at for one that is not damaged, to learn how a data set is laid out."""


DECODE_SIZE = 512
"""Pixels: the shorter side of a picture that is kept, if nobody says otherwise."""


class ImageSource(ABC):
    """Numbered images of any sizes, decoded one at a time; to be pickled into worker processes.

    ``labels`` is int64 [N] or None; ``decode_size`` the shorter side that larger images are shrunk to, pixels.
    """

    labels: Tensor | None = None
    decode_size: int = DECODE_SIZE

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def decode(self, index: int) -> Tensor:
        """An image uint8 [3, H, W]. Raises anything if it cannot be decoded."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the image in messages."""

    def read(self, index: int) -> Tensor:
        """An image uint8 [3, H, W], the whole of it, shrunk where its shorter side is longer than ``decode_size``.

        Raises:
            DamagedImageError: it cannot be decoded.
        """
        try:
            return shrink(self.decode(index), self.decode_size)
        except (MemoryError, DamagedImageError):
            raise
        except Exception as error:  # decoders raise errors of every kind on damaged bytes
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DamagedImageError(self.name(index), reason) from None


class FileSource(ImageSource):
    """Image files of any kind that Pillow reads, in order.

    Args:
        paths: of the N files.
        labels: int64 [N], or None.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], labels: Tensor | None = None) -> None:
        names = [os.fsencode(path) for path in paths]
        # two objects instead of a million: forked workers would copy these one after the other
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])
        self.labels = labels

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def decode(self, index: int) -> Tensor:
        return decode(open_file(self.name(index)))


class PictureSource(ImageSource):
    """Pictures in memory, to be streamed all the same."""

    def __init__(self, pictures: Tensor | Pictures, labels: Tensor | None = None) -> None:
        self.pictures = pictures
        self.labels = labels

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return str(index)

    def decode(self, index: int) -> Tensor:
        return self.pictures[index]


class SubsetSource(ImageSource):
    """Some of the images of another source, indices int64 [B]."""

    def __init__(self, source: ImageSource, indices: Tensor) -> None:
        self.source, self.indices = source, indices.cpu()
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.decode_size = source.decode_size

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def decode(self, index: int) -> Tensor:
        return self.source.decode(int(self.indices[index]))


class MapSource(ImageSource):
    """The adapter for any map-style data set: ``len()`` and ``data_set[index]``.

    Args:
        data_set: its items are images, ``(image, label)`` pairs as torchvision's, or dictionaries as Hugging Face's.
            Images as ``pixels.decode`` takes them.
        image_key, label_key: where they are in a dictionary; found if they have a usual name.

        labels: int64 [N], what the labels are; None to take the items' own.

    ``first`` is the number of the first item that can be read. Labels are what ``data_set[i]`` returns, -1 where one is
    missing; None where all are (a hidden test split), where items have none, and, with a warning, where they are not
    whole numbers.

    Raises:
        UserError: no key is one of an image, a key that is not there, or not one of the first 100 items can be read.
    """

    def __init__(
        self,
        data_set: Any,
        *,
        image_key: str | None = None,
        label_key: str | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.data_set = data_set
        self.first, item = self._first_item()
        keys = [str(key) for key in item] if isinstance(item, Mapping) else []
        self.image_key = find_key(keys, image_key, IMAGE_KEYS, "image") if keys else None
        self.label_key = find_key(keys, label_key, LABEL_KEYS, "label") if keys else None
        if labels is not None and (labels.shape != (len(self),) or labels.dtype != torch.int64):
            raise UserError(f"labels must be int64 [{len(self)}], got {labels.dtype} {tuple(labels.shape)}")
        self.labels = self._read_labels(item) if labels is None else labels

    def __len__(self) -> int:
        return len(self.data_set)

    def name(self, index: int) -> str:
        return str(index)

    def decode(self, index: int) -> Tensor:
        return decode(self._parts(self.data_set[index])[0])

    def _first_item(self) -> tuple[int, Any]:
        """The first item that can be read, and its number."""
        reason = "it is empty"
        for index in range(min(TRIES, len(self.data_set))):
            try:
                item = self.data_set[index]
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
            else:
                return index, item
        raise UserError(f"no image of the data set can be read: {reason}")

    def _parts(self, item: Any) -> tuple[Any, Any]:
        """Image and label; None for a label that is not there."""
        if isinstance(item, Mapping) and self.image_key is not None:
            return item[self.image_key], None if self.label_key is None else item[self.label_key]
        if isinstance(item, tuple | list):
            return item[0], item[1] if len(item) > 1 else None
        return item, None

    def _read_labels(self, item: Any) -> Tensor | None:
        label = self._parts(item)[1]
        if label is not None and not _is_whole(label):
            LOG.warning("labels of type %s are not whole numbers: the images count as unlabelled", type(label).__name__)
            return None
        if label is None and not isinstance(item, Mapping | tuple | list):
            return None  # bare images
        if isinstance(item, Mapping) and self.label_key is None:
            return None
        if not isinstance(item, Mapping) and len(item) < 2:
            return None
        labels = known_labels(self.data_set, self.label_key)
        if labels is None:
            LOG.info("reading the labels of %d items one by one: MapSource(data_set, labels=...) saves that", len(self))
            labels = np.array([self._label(index) for index in range(len(self))], dtype=np.int64)
        return torch.from_numpy(labels) if labels.max(initial=-1) >= 0 else None

    def _label(self, index: int) -> int:
        """-1 for one that is missing."""
        try:
            label = self._parts(self.data_set[index])[1]
        except Exception:
            return -1  # a damaged image: it is never read, so neither is its label
        return int(label) if label is not None and _is_whole(label) else -1


def known_labels(data_set: Any, key: str | None) -> "np.ndarray[Any, np.dtype[np.int64]] | None":
    """All labels without the images, where they are certain to be those of ``data_set[i]``: of classes whose
    ``__getitem__`` is a known one, with no transform that could change a label. Else None."""
    kind = type(data_set)
    if kind is Subset:
        labels = known_labels(data_set.dataset, key)
        return None if labels is None else labels[np.asarray(data_set.indices, dtype=np.int64)]
    if kind is ConcatDataset:
        parts = [known_labels(part, key) for part in data_set.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    module = getattr(getattr(kind, "__getitem__", None), "__module__", "")
    if module.startswith("datasets.") and key is not None and data_set.format["type"] != "custom":
        return _whole_array(data_set[key])
    changes = [getattr(data_set, "target_transform", None)]
    both: Any = getattr(data_set, "transforms", None)  # of image and label together, unless it is torchvision's of each
    changes += [both.target_transform if type(both).__name__ == "StandardTransform" else both]
    if not module.startswith("torchvision.datasets.") or any(change is not None for change in changes):
        return None
    name = KNOWN.get(kind.__getitem__.__qualname__.partition(".")[0], "")
    values = getattr(data_set, name, None)
    labels = _whole_array([pair[1] for pair in values or ()] if name.endswith("samples") else values)
    return labels if labels is not None and len(labels) == len(data_set) else None


def find_key(keys: list[str], given: str | None, usual: tuple[str, ...], what: str) -> str | None:
    """The key that was given, or the first of the usual ones that there is.

    Raises:
        UserError: the one that was given is not there, or none of an image.
    """
    if given is not None and given not in keys:
        raise UserError(f"the data set has no key {given!r} for the {what}, only {', '.join(keys)}")
    if given is not None:
        return given
    for wanted in usual:
        for key in keys:
            if key.lower() == wanted:
                return key
    if what == "image":
        raise UserError(f"no key of the data set is an image's: got {', '.join(keys)}, looked for {', '.join(usual)}")
    return None


def _is_whole(label: Any) -> bool:
    array = np.asarray(label)
    return array.ndim == 0 and array.dtype.kind in "iu"


def _whole_array(values: Any) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Labels as int64 [N], a missing one as -1; None if they are anything else."""
    try:
        plain = values.tolist() if hasattr(values, "tolist") else values
        array = np.asarray([-1 if value is None else value for value in plain])
    except (TypeError, ValueError):
        return None
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iu" else None

"""Data sets by name: small ones as uint8 tensors on the device, large ones decoded in workers while they are used."""

from dataclasses import replace
from pathlib import Path

import torch

from dogo_fast.data.adapters import load_hugging_face, load_torchvision
from dogo_fast.data.cifar10 import load_cifar10
from dogo_fast.data.cifar100 import load_cifar100
from dogo_fast.data.data_set import DataSet, Images, Split
from dogo_fast.data.decoding import batches_in_order
from dogo_fast.data.digits import load_digits
from dogo_fast.data.file_list import load_file_list
from dogo_fast.data.folder import load_folder
from dogo_fast.data.iterable import IterableLoader, IterableSource
from dogo_fast.data.loader import Batch, ResidentLoader
from dogo_fast.data.residence import RESIDENCES, settle
from dogo_fast.data.source import DECODE_SIZE, FileSource, ImageSource, MapSource, PictureSource
from dogo_fast.data.stl10 import load_stl10
from dogo_fast.data.streaming import StreamingLoader
from dogo_fast.data.tiny_imagenet import load_tiny_imagenet
from dogo_fast.errors import UserError
from dogo_fast.pictures import Pictures

__all__ = [
    "DATA_PREFIXES",
    "DATA_SETS",
    "DECODE_SIZE",
    "RESIDENCES",
    "Batch",
    "DataSet",
    "FileSource",
    "ImageSource",
    "Images",
    "IterableLoader",
    "IterableSource",
    "MapSource",
    "PictureSource",
    "Pictures",
    "ResidentLoader",
    "Split",
    "StreamingLoader",
    "batches_in_order",
    "check_data_name",
    "load_data_set",
    "make_loader",
]

DATA_SETS = ("digits", "cifar10", "cifar100", "stl10", "tiny-imagenet", "folder")
"""What a name may be."""
DATA_PREFIXES = ("torchvision:", "hf:", "list:")
"""What a name may begin with instead: a class of torchvision.datasets, a folder that Hugging Face's package reads, a
list of files."""


def check_data_name(name: str) -> None:
    """Refuse what is neither of ``DATA_SETS`` nor continues a prefix.

    Raises:
        ValueError: the message says what is allowed.
    """
    if name not in DATA_SETS and not any(name.startswith(prefix) and name != prefix for prefix in DATA_PREFIXES):
        raise ValueError(f"must be one of {', '.join(DATA_SETS)}, torchvision:NAME, hf:PATH, list:NAME")


def load_data_set(
    name: str,
    directory: Path | None = None,
    *,
    view_size: int | None = None,
    decode_size: int = DECODE_SIZE,
    residence: str = "auto",
    workers: int = 0,
) -> DataSet:
    """The data set ``name``, on the CPU. Nothing is downloaded.

    Args:
        name: one of ``DATA_SETS``, "torchvision:NAME", "hf:PATH" or "list:NAME". ``digits`` is embedded.
        directory: where the files lie; not for ``digits``.
        view_size: side of the views, pixels; None for the data set's own where a sample of 16 images are all squares of
            one size up to 224, else 224.
        decode_size: pictures whose shorter side is longer are shrunk to it, pixels.
        residence: "device" decodes all images once, "stream" whenever they are used; "auto" streams what has more than
            4 GiB decoded.
        workers: processes that decode what is decoded once; 0 decodes in this one.

    Raises:
        UserError: an argument that is not allowed, files missing or damaged, more than 1 % of the images damaged.
    """
    try:
        check_data_name(name)
    except ValueError as error:
        raise UserError(f"`data` {error}, got {name!r}") from None
    for setting, pixels in (("view_size", view_size), ("decode_size", decode_size)):
        if pixels is not None and pixels < 1:
            raise UserError(f"`{setting}` must be at least 1, got {pixels}")
    if residence not in RESIDENCES:
        raise UserError(f"`residence` must be one of {', '.join(RESIDENCES)}, got {residence!r}")
    if workers < 0:
        raise UserError(f"`workers` must be at least 0, got {workers}")
    data = _load(name, directory)
    return settle(replace(data, view_size=view_size or data.view_size), decode_size, residence, workers)


def _load(name: str, directory: Path | None) -> DataSet:
    """As tensors, or as sources."""
    if name == "digits":
        if directory is not None:
            raise UserError(f"`data_dir` must not be given with `data` digits (it is embedded), got {directory}")
        return load_digits()
    if name.startswith("torchvision:"):
        return load_torchvision(name, directory)
    if name.startswith("hf:"):
        return load_hugging_face(name, directory)
    if name.startswith("list:"):
        return load_file_list(name, directory)
    for tensors_name, load_tensors in (("cifar10", load_cifar10), ("cifar100", load_cifar100), ("stl10", load_stl10)):
        if name == tensors_name:
            return load_tensors(directory)
    return (load_folder if name == "folder" else load_tiny_imagenet)(directory)


def make_loader(
    images: Images | ImageSource | IterableSource, batch_size: int, seed: int, device: torch.device, workers: int
) -> ResidentLoader | StreamingLoader | IterableLoader:
    """The loader of what is resident or of what streams; the order of the images is the same but for an iterable's.

    Args:
        images: uint8 [N, 3, H, W], pictures, or a source.
        batch_size: images a batch, from 2 to N.
        seed: of the order.
        device: where the batches are wanted.
        workers: processes that decode a source.

    Raises:
        UserError: a batch size below 2 or above N.
    """
    if isinstance(images, IterableSource):
        return IterableLoader(images, batch_size, seed, device, workers)
    if isinstance(images, ImageSource):
        return StreamingLoader(images, batch_size, seed, device, workers)
    return ResidentLoader(images.to(device), batch_size, seed)

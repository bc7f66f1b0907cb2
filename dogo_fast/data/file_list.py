"""Image files named in text files, a line each with its label, as DomainNet publishes its splits."""

from pathlib import Path

import torch

from dogo_fast.data.data_set import DataSet
from dogo_fast.data.files import read_bytes
from dogo_fast.data.folder import IMAGENET_DEVIATION, IMAGENET_MEAN
from dogo_fast.data.source import FileSource
from dogo_fast.errors import UserError

HOW_TO_GET_IT = "a line of the file is the path of an image, from its own folder on, and a whole number, its label"


def load_file_list(name: str, directory: Path | None) -> DataSet:
    """The images that ``NAME_train.txt`` names, and for tests those of ``NAME_test.txt``.

    Args:
        name: "list:NAME", of DomainNet clipart, infograph, painting, quickdraw, real or sketch.
        directory: the folder that holds the text files; paths in them begin there.

    Raises:
        UserError: no directory, no ``NAME_train.txt``, a line that is no path and label, or a file that is not there.
    """
    if directory is None or not directory.is_dir():
        got = "none" if directory is None else directory
        raise UserError(f"`data_dir` must be the folder that holds the lists of `data` {name}, got {got}")
    domain = name.partition(":")[2]
    train = _read(directory, f"{domain}_train.txt")
    test = _read(directory, f"{domain}_test.txt") if (directory / f"{domain}_test.txt").exists() else None
    assert train.labels is not None
    classes = tuple(str(number) for number in range(int(train.labels.max()) + 1))
    notes = () if test is not None else (f"no {domain}_test.txt in {directory}: no scores",)
    return DataSet(name, train, train, test, classes, IMAGENET_MEAN, IMAGENET_DEVIATION, notes=notes)


def _read(directory: Path, name: str) -> FileSource:
    paths, labels = [], []
    path = directory / name
    for number, line in enumerate(read_bytes(path, HOW_TO_GET_IT).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        image, _, label = line.strip().rpartition(" ")
        if not image or not label.isdecimal():
            raise UserError(f"{path} is damaged in line {number}: {HOW_TO_GET_IT}; got {line[:80]!r}")
        paths.append(directory / image)
        labels.append(int(label))
    if not paths:
        raise UserError(f"{path} names no images: {HOW_TO_GET_IT}")
    if not paths[0].is_file():
        raise UserError(f"{path} names {paths[0]}, which is missing: paths begin in the folder of the list")
    return FileSource(paths, torch.tensor(labels))

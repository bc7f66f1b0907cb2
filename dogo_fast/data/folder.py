"""Image files in folders: one folder a class, or no classes at all."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dogo_fast.data.data_set import DataSet
from dogo_fast.data.source import FileSource
from dogo_fast.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
TEST_FOLDERS = ("val", "test")
"""Where labelled test images may be, the first choice first."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def load_folder(directory: Path | None) -> DataSet:
    """The images of ``DIR/train`` if there is one, else of ``DIR``; the test images of ``DIR/val`` or ``DIR/test``.

    Two or more folders with images beneath, and none beside them, are classes. Anything else is unlabelled, nested or
    not; then there is no train split. Hidden files and folders are passed over, links followed.

    Args:
        directory: DIR.

    Raises:
        UserError: no directory, no images in it, or a class of the test images that has no training images.
    """
    if directory is None:
        raise UserError("`data_dir` is required with `data` folder: pass the folder that holds the images")
    if not directory.is_dir():
        raise UserError(f"`data_dir` must be an existing folder, got {directory}")
    root = directory / "train" if (directory / "train").is_dir() else directory
    paths, labels, class_names = _list_classes(root)
    if not paths:
        raise UserError(f"`data_dir` must hold images ({', '.join(EXTENSIONS)}), found none in {root}")
    images = FileSource(paths, labels)
    train = None if labels is None else images
    test = _find_test(directory, class_names) if labels is not None and root != directory else None
    return DataSet("folder", images, train, test, class_names, IMAGENET_MEAN, IMAGENET_DEVIATION)


def list_images(folder: Path, above: tuple[str, ...] = ()) -> list[str]:
    """The image files in a folder and those beneath, sorted within each folder; hidden ones are passed over.

    Raises:
        UserError: a folder that cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above:
        return []  # a link to a folder that this one is in
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None
    paths: list[str] = []
    for entry in entries:
        if entry.is_dir():
            paths += list_images(Path(entry.path), (*above, real))
        elif entry.name.lower().endswith(EXTENSIONS):
            paths.append(entry.path)
    return paths


def _list_classes(root: Path) -> tuple[list[str], Tensor | None, tuple[str, ...]]:
    """Files, labels and names of the classes; None and no names where there are no classes."""
    paths = list_images(root)
    parts = [os.path.relpath(path, root).split(os.sep) for path in paths]
    class_names = tuple(sorted({part[0] for part in parts}))
    if len(class_names) < 2 or any(len(part) == 1 for part in parts):
        return paths, None, ()
    return paths, _number([part[0] for part in parts], class_names), class_names


def _find_test(directory: Path, class_names: tuple[str, ...]) -> FileSource | None:
    for name in TEST_FOLDERS:
        if not (directory / name).is_dir():
            continue
        paths = list_images(directory / name)
        parts = [os.path.relpath(path, directory / name).split(os.sep) for path in paths]
        if not parts or any(len(part) == 1 for part in parts):
            continue  # without classes, as ImageNet's test images
        unknown = sorted({part[0] for part in parts} - set(class_names))
        if unknown:
            raise UserError(
                f"the classes in {directory / name} must be among those in {directory / 'train'}, got {unknown[0]}"
            )
        return FileSource(paths, _number([part[0] for part in parts], class_names))
    return None


def _number(names: Sequence[str], class_names: Sequence[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(class_names)}
    return torch.tensor([numbers[name] for name in names], dtype=torch.int64)

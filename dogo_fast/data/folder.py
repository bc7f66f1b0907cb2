"""Image files in folders: one folder a class, or no classes at all; splits beside each other, or none."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dogo_fast.data.data_set import DataSet
from dogo_fast.data.source import FileSource
from dogo_fast.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
TRAIN_FOLDERS = ("train", "training", "trn")
TEST_FOLDERS = (("val", "valid", "validation", "dev", "eval"), ("test", "testing"))
"""Names of splits, in any case; of the labelled test images the first family's are taken if there are any."""
SPLITS = frozenset((*TRAIN_FOLDERS, *TEST_FOLDERS[0], *TEST_FOLDERS[1]))
IGNORED = ("__MACOSX",)
NAMED = 3
"""Things named in a line."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class Layout(NamedTuple):
    """What a folder was understood as."""

    paths: list[str]
    labels: list[int] | None
    class_names: tuple[str, ...]
    test_paths: list[str]
    test_labels: list[int]
    notes: tuple[str, ...]


def load_folder(directory: Path | None) -> DataSet:
    """The images in a folder, as ``read_layout`` understands it.

    Raises:
        UserError: no directory, no images in it, or a layout that may mean several things.
    """
    if directory is None:
        raise UserError("`data_dir` is required with `data` folder: pass the folder that holds the images")
    if not directory.is_dir():
        raise UserError(f"`data_dir` must be an existing folder, got {directory}")
    layout = read_layout(directory)
    images = FileSource(layout.paths, None if layout.labels is None else torch.tensor(layout.labels))
    train = None if layout.labels is None else images
    test = FileSource(layout.test_paths, torch.tensor(layout.test_labels)) if layout.test_paths else None
    names, notes = layout.class_names, layout.notes
    return DataSet("folder", images, train, test, names, IMAGENET_MEAN, IMAGENET_DEVIATION, notes=notes)


def read_layout(directory: Path) -> Layout:
    """The images of ``DIR/train`` if there is one, else of ``DIR``; labelled ones of ``DIR/val`` or ``DIR/test``.

    Two or more folders with images beneath are classes; images beside them are left out if they are fewer than the
    smallest class. Anything else is unlabelled, nested or not; then there is no train split. Hidden files and folders
    are passed over, links followed. Splits have any of their usual names, in any case; where all folders are called
    after splits, with anything beside it (train2017, val2017). Where DIR holds images in one folder only, and that one
    splits, or again one such folder, it is read.

    Raises:
        UserError: no images, a layout that may mean several things, or a class of the test images that has no training
            images.
    """
    notes: list[str] = []
    splits, others, loose = _splits_of(directory)
    inner = _only_folder_with_splits(directory)
    if inner != directory:
        directory = inner
        notes.append(f"read from {directory}")
        splits, others, loose = _splits_of(directory)
    splits = [name for name in splits if list_images(directory / name)]
    others = [name for name in others if splits and list_images(directory / name)]
    train = [name for name in splits if _family(name) == TRAIN_FOLDERS]
    if splits and (others or len(train) != 1):
        beside = f" beside {_some(others)}" if others else ""
        raise UserError(
            f"`data_dir` must hold class folders, or one train folder with its test folders alone, got {_some(splits)}"
            f"{beside} in {directory}: pass the folder of the classes, or rename"
        )
    root = directory / train[0] if train else directory
    paths, labels, class_names = _list_classes(root, notes)
    if not paths:
        raise UserError(f"`data_dir` must hold images ({', '.join(EXTENSIONS)}), found none in {root}")
    meaning = f"{_count(len(class_names), 'class')}, {_some(class_names)}" if class_names else "no labels"
    notes.insert(0, f"{_count(len(paths), 'image')} in {root}: {meaning}")
    if train and loose:
        notes.append(f"{_count(loose, 'image')} beside {train[0]} left out")
    test_paths, test_labels = _find_test(directory, splits, train, class_names, notes)
    return Layout(paths, labels, class_names, test_paths, test_labels, tuple(notes))


def _only_folder_with_splits(directory: Path) -> Path:
    """The folder itself, or the one beneath it that holds splits where each above holds images in that one alone."""
    below = directory
    while True:
        splits, others, loose = _splits_of(below)
        filled = [name for name in others if list_images(below / name)]
        if splits:
            return below
        if loose or len(filled) != 1:
            return directory
        below = below / filled[0]


def _family(name: str) -> tuple[str, ...]:
    """The names of a split that a folder's name has among its words, as "train" of "train_2017"; none if it has not."""
    words = re.split("[^a-z]+", name.lower())
    return next((family for family in (TRAIN_FOLDERS, *TEST_FOLDERS) if any(word in family for word in words)), ())


def _splits_of(directory: Path) -> tuple[list[str], list[str], int]:
    """Names of the split folders in a folder and of the others, and how many images lie beside them."""
    entries = _entries(directory)
    names = [entry.name for entry in entries if entry.is_dir()]
    loose = sum(not entry.is_dir() and entry.name.lower().endswith(EXTENSIONS) for entry in entries)
    splits = [name for name in names if name.lower() in SPLITS]
    if all(map(_family, names)) and any(_family(name) == TRAIN_FOLDERS for name in names):
        splits = names  # all of them are called after splits; among others such a name may be a class's
    return splits, [name for name in names if name not in splits], loose


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    """What is in a folder, sorted, without what is hidden.

    Raises:
        UserError: it cannot be read.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name[0] != "." and entry.name not in IGNORED]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None
    return sorted(entries, key=lambda entry: entry.name)


def list_images(folder: Path, above: tuple[str, ...] = (), passed_over: list[str] | None = None) -> list[str]:
    """The image files in a folder and those beneath, sorted within each folder; hidden ones are passed over.

    Args:
        folder: where.
        above: the real paths of the folders that it lies in, so that links do not lead in circles.
        passed_over: files that are no images are added to it.

    Raises:
        UserError: a folder that cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above:
        return []  # a link to a folder that this one is in
    paths: list[str] = []
    for entry in _entries(folder):
        if entry.is_dir():
            paths += list_images(Path(entry.path), (*above, real), passed_over)
        elif entry.name.lower().endswith(EXTENSIONS):
            paths.append(entry.path)
        elif passed_over is not None:
            passed_over.append(entry.path)
    return paths


def _list_classes(root: Path, notes: list[str]) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """Files, labels and names of the classes; None and no names where there are no classes."""
    no_images: list[str] = []
    paths = list_images(root, passed_over=no_images)
    if no_images:
        notes.append(f"{_count(len(no_images), 'file')} of another kind left out: {_some(no_images)}")
    parts = [os.path.relpath(path, root).split(os.sep) for path in paths]
    sizes = Counter(part[0] for part in parts if len(part) > 1)
    class_names = tuple(sorted(sizes))
    empty = [entry.name for entry in _entries(root) if entry.is_dir() and entry.name not in sizes]
    if empty:
        notes.append(f"{_count(len(empty), 'folder')} without images in {root}: {_some(empty)}")
    if len(class_names) < 2:
        return paths, None, ()
    if all(len(part) > 2 and part[1].lower() in SPLITS for part in parts):
        raise UserError(
            f"`data_dir` must hold train and test folders of classes, got classes that hold them, "
            f"{_some(class_names)}, in {root}: training and test images could not be told apart"
        )
    strays = [path for path, part in zip(paths, parts, strict=True) if len(part) == 1]
    if len(strays) >= min(sizes.values()):
        raise UserError(
            f"`data_dir` must hold class folders or images, got {_count(len(strays), 'image')} beside "
            f"{len(class_names)} folders of images in {root}, of which the smallest has {min(sizes.values())}: put the "
            "images elsewhere for labels, or all into one folder for none"
        )
    if strays:
        notes.append(f"{_count(len(strays), 'image')} beside the class folders left out: {_some(strays)}")
    kept = [(path, part[0]) for path, part in zip(paths, parts, strict=True) if len(part) > 1]
    return [path for path, _ in kept], _number([name for _, name in kept], class_names), class_names


def _find_test(
    directory: Path, splits: list[str], train: list[str], class_names: tuple[str, ...], notes: list[str]
) -> tuple[list[str], list[int]]:
    """The labelled test images: paths and labels, none where there are none."""
    for family in TEST_FOLDERS:
        names = [name for name in splits if _family(name) == family]
        if len(names) > 1:
            raise UserError(f"`data_dir` must hold one folder of test images, got {_some(names)} in {directory}")
        for name in names:
            paths = list_images(directory / name)
            parts = [os.path.relpath(path, directory / name).split(os.sep) for path in paths]
            if not class_names or any(len(part) == 1 for part in parts) or not parts:
                why = "without labels" if class_names else "since the training images have no labels"
                notes.append(f"{_count(len(paths), 'image')} in {directory / name} left out, {why}")
                continue
            unknown = sorted({part[0] for part in parts} - set(class_names))
            if unknown:
                raise UserError(
                    f"the classes in {directory / name} must be among those in {directory / train[0]}, got {unknown[0]}"
                )
            notes.append(f"{_count(len(paths), 'test image')} in {directory / name}")
            notes += [f"{directory / other} left out" for other in splits if other not in (*names, *train)]
            return paths, _number([part[0] for part in parts], class_names)
    return [], []


def _number(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    numbers = {name: number for number, name in enumerate(class_names)}
    return [numbers[name] for name in names]


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(os.path.basename(name) for name in names[:NAMED])
    return f"{shown}{', ...' if len(names) > NAMED else ''}"

"""Tiny ImageNet as published: 200 classes, a folder of 500 JPEG files each, and a list of the validation files."""

from pathlib import Path

import torch

from dogo_fast.data.data_set import DataSet
from dogo_fast.data.files import find_folder, how_to_get, read_bytes, read_words
from dogo_fast.data.folder import IMAGENET_DEVIATION, IMAGENET_MEAN, list_images
from dogo_fast.data.source import FileSource
from dogo_fast.errors import UserError

FOLDER = "tiny-imagenet-200"
CLASSES = 200
IMAGES_A_CLASS = 500
TEST_IMAGES = 10_000
HOW_TO_GET_IT = how_to_get("tiny-imagenet-200.zip", "http://cs231n.stanford.edu/tiny-imagenet-200.zip", FOLDER)


def load_tiny_imagenet(directory: Path | None) -> DataSet:
    """100 000 training images; the 10 000 validation images to test with. Classes are called by their WordNet ids.

    Args:
        directory: the folder that holds ``tiny-imagenet-200``, or that folder itself.

    Raises:
        UserError: no directory, or files missing or damaged.
    """
    folder = find_folder(directory, "tiny-imagenet", FOLDER, HOW_TO_GET_IT)
    class_names = read_words(folder / "wnids.txt", CLASSES, "class names", HOW_TO_GET_IT)
    train = [path for name in class_names for path in _list(folder / "train" / name / "images", IMAGES_A_CLASS)]
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES_A_CLASS)
    source = FileSource(train, labels)
    test = _read_test(folder / "val", class_names)
    return DataSet("tiny-imagenet", source, source, test, class_names, IMAGENET_MEAN, IMAGENET_DEVIATION)


def _list(folder: Path, count: int) -> list[str]:
    paths = list_images(folder) if folder.is_dir() else []
    if len(paths) != count:
        raise UserError(f"{folder} is incomplete: expected {count} images, got {len(paths)}; {HOW_TO_GET_IT}")
    return paths


def _read_test(folder: Path, class_names: tuple[str, ...]) -> FileSource:
    """The files that ``val_annotations.txt`` lists: per line a name, a class and a box, divided by tabs."""
    path = folder / "val_annotations.txt"
    lines = read_bytes(path, HOW_TO_GET_IT).decode("utf-8", errors="replace").splitlines()
    numbers = {name: number for number, name in enumerate(class_names)}
    classes: dict[str, int] = {}
    for line_number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in numbers:
            raise UserError(
                f"{path} is damaged: expected a file and a class of wnids.txt, got {line[:80]!r} in line "
                f"{line_number}; {HOW_TO_GET_IT}"
            )
        classes[fields[0]] = numbers[fields[1]]
    files = _list(folder / "images", TEST_IMAGES)
    missing = [file for file in files if Path(file).name not in classes]
    if missing:
        raise UserError(f"{path} is damaged: expected a line for {Path(missing[0]).name}, got none; {HOW_TO_GET_IT}")
    return FileSource(files, torch.tensor([classes[Path(file).name] for file in files]))

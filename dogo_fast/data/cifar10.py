"""CIFAR-10 in its published binary layout: records of one label byte and an image."""

from pathlib import Path
from typing import Any

import torch

from dogo_fast.data.data_set import DataSet, Split
from dogo_fast.data.files import find_folder, how_to_get, read_records, read_words

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
NAMES_FILE = "batches.meta.txt"
RECORDS = 10_000
"""Records in each file."""
CLASSES = 10
MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)
HOW_TO_GET_IT = how_to_get('"CIFAR-10 binary version"', "https://www.cs.toronto.edu/~kriz/cifar.html", FOLDER)


def load_cifar10(directory: Path | None) -> DataSet:
    """50 000 training and 10 000 test images [N, 3, 32, 32].

    Args:
        directory: the folder that holds ``cifar-10-batches-bin``, or that folder itself.

    Raises:
        UserError: no directory, or a file that is missing, of a wrong size, or with labels beyond 9.
    """
    folder = find_folder(directory, "cifar10", FOLDER, HOW_TO_GET_IT)
    class_names = read_words(folder / NAMES_FILE, CLASSES, "class names", HOW_TO_GET_IT)
    parts = [_read(folder / name) for name in TRAIN_FILES]
    images: list[Any] = [part.images for part in parts]
    train = Split(torch.cat(images), torch.cat([part.labels for part in parts]))
    return DataSet("cifar10", train.images, train, _read(folder / TEST_FILE), class_names, MEAN, DEVIATION)


def _read(path: Path) -> Split:
    return read_records(path, RECORDS, 1, CLASSES, HOW_TO_GET_IT)

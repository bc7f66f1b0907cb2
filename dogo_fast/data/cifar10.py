"""CIFAR-10 as published: the binary version, records of one label byte and an image, or the Python version."""

from pathlib import Path
from typing import Any

import torch

from dogo_fast.data.data_set import DataSet, Split
from dogo_fast.data.files import (
    find_folder,
    how_to_get,
    pickled_words,
    read_pickled_records,
    read_records,
    read_words,
)

FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"
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
        directory: the folder that holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or that folder itself.

    Raises:
        UserError: no directory, or a file that is missing, of a wrong size, or with labels beyond 9.
    """
    folder = find_folder(directory, "cifar10", FOLDER, HOW_TO_GET_IT)
    python = folder / PYTHON_FOLDER if (folder / PYTHON_FOLDER).is_dir() else folder
    if (python / "batches.meta").is_file() and not (folder / NAMES_FILE).exists():
        class_names = pickled_words(python / "batches.meta", b"label_names", CLASSES, "class names", HOW_TO_GET_IT)
        names = [name.removesuffix(".bin") for name in (*TRAIN_FILES, TEST_FILE)]
        splits = [read_pickled_records(python / name, RECORDS, b"labels", CLASSES, HOW_TO_GET_IT) for name in names]
    else:
        class_names = read_words(folder / NAMES_FILE, CLASSES, "class names", HOW_TO_GET_IT)
        names = [*TRAIN_FILES, TEST_FILE]
        splits = [read_records(folder / name, RECORDS, 1, CLASSES, HOW_TO_GET_IT) for name in names]
    *parts, test = splits
    images: list[Any] = [part.images for part in parts]
    train = Split(torch.cat(images), torch.cat([part.labels for part in parts]))
    return DataSet("cifar10", train.images, train, test, class_names, MEAN, DEVIATION)

"""CIFAR-100 as published: the binary version, records of a coarse and a fine label byte and an image, or the Python
version."""

from pathlib import Path

from dogo_fast.data.data_set import DataSet
from dogo_fast.data.files import (
    find_folder,
    how_to_get,
    pickled_words,
    read_pickled_records,
    read_records,
    read_words,
)

FOLDER = "cifar-100-binary"
PYTHON_FOLDER = "cifar-100-python"
NAMES = "fine_label_names"
TRAIN_RECORDS = 50_000
TEST_RECORDS = 10_000
CLASSES = 100
MEAN = (0.5071, 0.4865, 0.4409)
DEVIATION = (0.2673, 0.2564, 0.2762)
HOW_TO_GET_IT = how_to_get('"CIFAR-100 binary version"', "https://www.cs.toronto.edu/~kriz/cifar.html", FOLDER)


def load_cifar100(directory: Path | None) -> DataSet:
    """50 000 training and 10 000 test images [N, 3, 32, 32] with their fine labels.

    Args:
        directory: the folder that holds ``cifar-100-binary`` or ``cifar-100-python``, or that folder itself.

    Raises:
        UserError: no directory, or a file that is missing, of a wrong size, or with labels beyond 99.
    """
    folder = find_folder(directory, "cifar100", FOLDER, HOW_TO_GET_IT)
    python = folder / PYTHON_FOLDER if (folder / PYTHON_FOLDER).is_dir() else folder
    records = (("train", TRAIN_RECORDS), ("test", TEST_RECORDS))
    if (python / "meta").is_file() and not (folder / f"{NAMES}.txt").exists():
        class_names = pickled_words(python / "meta", NAMES.encode(), CLASSES, "class names", HOW_TO_GET_IT)
        train, test = (
            read_pickled_records(python / name, count, b"fine_labels", CLASSES, HOW_TO_GET_IT)
            for name, count in records
        )
    else:
        class_names = read_words(folder / f"{NAMES}.txt", CLASSES, "class names", HOW_TO_GET_IT)
        train, test = (
            read_records(folder / f"{name}.bin", count, 2, CLASSES, HOW_TO_GET_IT) for name, count in records
        )
    return DataSet("cifar100", train.images, train, test, class_names, MEAN, DEVIATION)

"""CIFAR-100 in its published binary layout: records of a coarse and a fine label byte and an image."""

from pathlib import Path

from dogo_fast.data.data_set import DataSet
from dogo_fast.data.files import find_folder, how_to_get, read_records, read_words

FOLDER = "cifar-100-binary"
TRAIN_RECORDS = 50_000
TEST_RECORDS = 10_000
CLASSES = 100
MEAN = (0.5071, 0.4865, 0.4409)
DEVIATION = (0.2673, 0.2564, 0.2762)
HOW_TO_GET_IT = how_to_get('"CIFAR-100 binary version"', "https://www.cs.toronto.edu/~kriz/cifar.html", FOLDER)


def load_cifar100(directory: Path | None) -> DataSet:
    """50 000 training and 10 000 test images [N, 3, 32, 32] with their fine labels.

    Args:
        directory: the folder that holds ``cifar-100-binary``, or that folder itself.

    Raises:
        UserError: no directory, or a file that is missing, of a wrong size, or with labels beyond 99.
    """
    folder = find_folder(directory, "cifar100", FOLDER, HOW_TO_GET_IT)
    class_names = read_words(folder / "fine_label_names.txt", CLASSES, "class names", HOW_TO_GET_IT)
    train = read_records(folder / "train.bin", TRAIN_RECORDS, 2, CLASSES, HOW_TO_GET_IT)
    test = read_records(folder / "test.bin", TEST_RECORDS, 2, CLASSES, HOW_TO_GET_IT)
    return DataSet("cifar100", train.images, train, test, class_names, MEAN, DEVIATION)

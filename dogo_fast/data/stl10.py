"""STL-10 in its published binary layout: images column by column, labels from 1 in files of their own."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dogo_fast.data.data_set import DataSet, Split
from dogo_fast.data.files import check_labels, check_size, explained, find_folder, how_to_get, read_bytes, read_words

FOLDER = "stl10_binary"
UNLABELLED = 100_000
TRAIN = 5_000
TEST = 8_000
CLASSES = 10
SIDE = 96
IMAGE_BYTES = 3 * SIDE * SIDE
CHUNK = 1_000
MEAN = (0.4467, 0.4398, 0.4066)
DEVIATION = (0.2603, 0.2566, 0.2713)
HOW_TO_GET_IT = how_to_get('"STL-10, binary files"', "https://cs.stanford.edu/~acoates/stl10/", FOLDER)


def load_stl10(directory: Path | None) -> DataSet:
    """100 000 unlabelled images, then 5 000 training images to pretrain on; 8 000 test images [N, 3, 96, 96].

    Args:
        directory: the folder that holds ``stl10_binary``, or that folder itself.

    Raises:
        UserError: no directory, or a file that is missing, of a wrong size, or with labels beyond 1 to 10.
    """
    folder = find_folder(directory, "stl10", FOLDER, HOW_TO_GET_IT)
    class_names = read_words(folder / "class_names.txt", CLASSES, "class names", HOW_TO_GET_IT)
    labels = [_read_labels(folder / "train_y.bin", TRAIN), _read_labels(folder / "test_y.bin", TEST)]
    test = torch.empty(TEST, 3, SIDE, SIDE, dtype=torch.uint8)
    pretraining = torch.empty(UNLABELLED + TRAIN, 3, SIDE, SIDE, dtype=torch.uint8)
    _read_images(folder / "test_X.bin", test)
    _read_images(folder / "train_X.bin", pretraining[UNLABELLED:])
    _read_images(folder / "unlabeled_X.bin", pretraining[:UNLABELLED])
    train = Split(pretraining[UNLABELLED:], labels[0])  # a view of the same memory
    return DataSet("stl10", pretraining, train, Split(test, labels[1]), class_names, MEAN, DEVIATION)


def _read_images(path: Path, images: Tensor) -> None:
    """Fill images uint8 [N, 3, 96, 96] from a file, a chunk at a time: the largest has 2.8 GB."""
    with explained(path, HOW_TO_GET_IT), path.open("rb") as file:
        check_size(path, path.stat().st_size, len(images), IMAGE_BYTES, HOW_TO_GET_IT)
        for chunk in images.split(CHUNK):
            columns = np.frombuffer(file.read(len(chunk) * IMAGE_BYTES), dtype=np.uint8).copy()
            chunk.copy_(torch.from_numpy(columns).reshape(-1, 3, SIDE, SIDE).transpose(2, 3))


def _read_labels(path: Path, count: int) -> Tensor:
    content = read_bytes(path, HOW_TO_GET_IT)
    check_size(path, len(content), count, 1, HOW_TO_GET_IT)
    labels = np.frombuffer(content, dtype=np.uint8).astype(np.int64)
    check_labels(path, labels, 1, CLASSES, HOW_TO_GET_IT)
    return torch.from_numpy(labels - 1)

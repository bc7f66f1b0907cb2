"""CIFAR-10 in its published binary layout: per record one label byte, then 3 × 32 × 32 bytes, a plane per channel."""

from pathlib import Path

import numpy as np
import torch

from dogo_fast.data.data_set import DataSet, Split
from dogo_fast.errors import UserError

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
NAMES_FILE = "batches.meta.txt"
RECORDS = 10_000
"""Records in each file."""
RECORD_BYTES = 1 + 3 * 32 * 32
CLASSES = 10

HOW_TO_GET_IT = (
    'download "CIFAR-10 binary version" from https://www.cs.toronto.edu/~kriz/cifar.html, '
    f"unpack it and pass the folder that holds {FOLDER} as --data-dir"
)


def load_cifar10(directory: Path | None) -> DataSet:
    """50 000 training and 10 000 test images [N, 3, 32, 32].

    Args:
        directory: the folder that holds ``cifar-10-batches-bin``, or that folder itself.

    Raises:
        UserError: no directory, or a file that is missing, of a wrong size, or with labels beyond 9.
    """
    if directory is None:
        raise UserError(f"--data-dir is required with --data cifar10: {HOW_TO_GET_IT}")
    if not directory.is_dir():
        raise UserError(f"--data-dir must be an existing folder, got {directory}: {HOW_TO_GET_IT}")
    folder = directory / FOLDER if (directory / FOLDER).is_dir() else directory
    class_names = _read_class_names(folder / NAMES_FILE)
    parts = [_read_records(folder / name) for name in TRAIN_FILES]
    train = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return DataSet("cifar10", train, _read_records(folder / TEST_FILE), class_names)


def _read_records(path: Path) -> Split:
    content = _read_bytes(path)
    expected = RECORDS * RECORD_BYTES
    if len(content) != expected:
        raise UserError(
            f"{path} is damaged: expected {expected} bytes ({RECORDS} records of {RECORD_BYTES}), "
            f"got {len(content)}; {HOW_TO_GET_IT}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(RECORDS, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= CLASSES)
    if wrong.size:
        raise UserError(
            f"{path} is damaged: expected labels from 0 to {CLASSES - 1}, got {records[wrong[0], 0]} in record "
            f"{wrong[0]} (counted from 0); {HOW_TO_GET_IT}"
        )
    images = torch.from_numpy(records[:, 1:].copy()).reshape(RECORDS, 3, 32, 32)
    return Split(images, torch.from_numpy(records[:, 0].astype(np.int64)))


def _read_class_names(path: Path) -> tuple[str, ...]:
    names = tuple(_read_bytes(path).decode("utf-8", errors="replace").split())
    if len(names) != CLASSES:
        raise UserError(f"{path} is damaged: expected {CLASSES} class names, got {len(names)}; {HOW_TO_GET_IT}")
    return names


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {HOW_TO_GET_IT}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {HOW_TO_GET_IT}") from None

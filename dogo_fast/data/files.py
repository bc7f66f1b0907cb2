"""Reading a data set's files: every problem is one line that names the file and says where to get it."""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dogo_fast.data.data_set import Split
from dogo_fast.errors import UserError

CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"
ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
"""What a pickle of arrays names."""


def how_to_get(title: str, page: str, folder: str) -> str:
    """The advice at the end of every message."""
    return f"download {title} from {page}, unpack it and pass the folder that holds {folder} as `data_dir`"


def find_folder(directory: Path | None, data: str, folder: str, advice: str) -> Path:
    """``directory / folder`` if that is there, else ``directory`` itself.

    Raises:
        UserError: no directory given, or it is none.
    """
    if directory is None:
        raise UserError(f"`data_dir` is required with `data` {data}: {advice}")
    if not directory.is_dir():
        raise UserError(f"`data_dir` must be an existing folder, got {directory}: {advice}")
    return directory / folder if (directory / folder).is_dir() else directory


@contextmanager
def explained(path: Path, advice: str) -> Iterator[None]:
    """Turns what the system says about a file into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {advice}") from None


def read_bytes(path: Path, advice: str) -> bytes:
    """The content of a file.

    Raises:
        UserError: it is missing or cannot be read.
    """
    with explained(path, advice):
        return path.read_bytes()


def read_words(path: Path, count: int, what: str, advice: str) -> tuple[str, ...]:
    """The ``count`` words in a text file, ``what`` they are being told in messages.

    Raises:
        UserError: as ``read_bytes``, or another number of words.
    """
    words = tuple(read_bytes(path, advice).decode("utf-8", errors="replace").split())
    if len(words) != count:
        raise UserError(f"{path} is damaged: expected {count} {what}, got {len(words)}; {advice}")
    return words


def read_records(path: Path, count: int, label_bytes: int, classes: int, advice: str) -> Split:
    """``count`` records of labels, a byte each, and an image: 3 × 32 × 32 bytes, a plane per channel.

    The last of a record's labels, the finest, is its label here.

    Raises:
        UserError: as ``read_bytes``, another size, or a label that is not below ``classes``.
    """
    content = read_bytes(path, advice)
    record_bytes = label_bytes + 3 * 32 * 32
    check_size(path, len(content), count, record_bytes, advice)
    records = np.frombuffer(content, dtype=np.uint8).reshape(count, record_bytes)
    labels = records[:, label_bytes - 1].astype(np.int64)
    check_labels(path, labels, 0, classes - 1, advice)
    images = torch.from_numpy(records[:, label_bytes:].copy()).reshape(count, 3, 32, 32)
    return Split(images, torch.from_numpy(labels))


class _Arrays(pickle.Unpickler):
    """Reads pickles that hold nothing but NumPy's arrays and Python's own containers; anything else is refused, since a
    pickle may run whatever it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("_core", "core"), name) in ARRAYS:
            return super().find_class(module.replace("numpy.core", CORE), name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_pickle(path: Path, advice: str) -> dict[bytes, Any]:
    """A dictionary, as the Python versions of CIFAR are kept.

    Raises:
        UserError: as ``read_bytes``, or it is no such file.
    """
    content = read_bytes(path, advice)
    try:
        found = _Arrays(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # pickle raises errors of every kind on damaged bytes
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); {advice}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: expected a dictionary, got {type(found).__name__}; {advice}")
    return found


def read_pickled_records(path: Path, count: int, key: bytes, classes: int, advice: str) -> Split:
    """The same as ``read_records`` from the Python version of the data set; ``key``: of the labels.

    Raises:
        UserError: as ``read_pickle``, other sizes, or a label that is not below ``classes``.
    """
    found = read_pickle(path, advice)
    images, labels = np.asarray(found.get(b"data")), np.asarray(found.get(key))
    if images.shape != (count, 3 * 32 * 32) or images.dtype != np.uint8 or labels.shape != (count,):
        raise UserError(
            f"{path} is damaged: expected {count} labels and images of 3072 bytes, got {labels.shape} and "
            f"{images.shape} {images.dtype}; {advice}"
        )
    labels = labels.astype(np.int64)
    check_labels(path, labels, 0, classes - 1, advice)
    return Split(torch.from_numpy(images.copy()).reshape(count, 3, 32, 32), torch.from_numpy(labels))


def pickled_words(path: Path, key: bytes, count: int, what: str, advice: str) -> tuple[str, ...]:
    """The same as ``read_words`` from the Python version's dictionary.

    Raises:
        UserError: as ``read_pickle``, or another number of words.
    """
    words = read_pickle(path, advice).get(key)
    if not isinstance(words, list) or len(words) != count:
        raise UserError(f"{path} is damaged: expected {count} {what}, got {words!r:.60}; {advice}")
    return tuple(word.decode("utf-8", errors="replace") if isinstance(word, bytes) else str(word) for word in words)


def check_size(path: Path, size: int, count: int, record_bytes: int, advice: str) -> None:
    """Raises UserError unless ``size`` bytes are ``count`` records."""
    expected = count * record_bytes
    if size != expected:
        raise UserError(
            f"{path} is damaged: expected {expected} bytes ({count} records of {record_bytes}), got {size}; {advice}"
        )


def check_labels(
    path: Path, labels: "np.ndarray[tuple[int], np.dtype[np.int64]]", least: int, most: int, advice: str
) -> None:
    """Raises UserError unless all labels are from ``least`` to ``most``."""
    wrong = np.flatnonzero((labels < least) | (labels > most))
    if wrong.size:
        raise UserError(
            f"{path} is damaged: expected labels from {least} to {most}, got {labels[wrong[0]]} in record "
            f"{wrong[0]} (counted from 0); {advice}"
        )

"""Data sets by name, held whole as uint8 tensors on the device, and the loader that shuffles them."""

from pathlib import Path

from dogo_fast.data.cifar10 import load_cifar10
from dogo_fast.data.data_set import DataSet, Split
from dogo_fast.data.digits import load_digits
from dogo_fast.data.loader import Loader
from dogo_fast.errors import UserError

__all__ = ["DATA_SETS", "DataSet", "Loader", "Split", "load_data_set"]

DATA_SETS = ("digits", "cifar10")


def load_data_set(name: str, directory: Path | None = None) -> DataSet:
    """The data set ``name``, on the CPU.

    Args:
        name: one of ``DATA_SETS``. ``digits`` is embedded (scikit-learn's); ``cifar10`` is read from files.
        directory: where the files lie; for ``cifar10`` only.

    Raises:
        UserError: an unknown name, a directory missing or given in vain, files missing or damaged.
    """
    if name == "digits":
        if directory is not None:
            raise UserError(f"--data-dir must not be given with --data digits (it is embedded), got {directory}")
        return load_digits()
    if name == "cifar10":
        return load_cifar10(directory)
    raise UserError(f"--data must be one of {', '.join(DATA_SETS)}, got {name!r}")

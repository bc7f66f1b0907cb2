"""Data sets of torchvision and of Hugging Face's package ``datasets``, both through ``MapSource``, never downloaded."""

import importlib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogo_fast.data.data_set import DataSet
from dogo_fast.data.folder import IMAGENET_DEVIATION, IMAGENET_MEAN
from dogo_fast.data.source import MapSource
from dogo_fast.errors import UserError

LOG = logging.getLogger("dogo_fast")
TRAIN_ARGUMENTS: tuple[dict[str, Any], ...] = ({"train": True}, {"split": "train"}, {})
TEST_ARGUMENTS: tuple[dict[str, Any], ...] = ({"train": False}, {"split": "test"}, {"split": "val"}, {"split": "valid"})
TEST_SPLITS = ("test", "validation", "valid", "val")


def load_torchvision(name: str, directory: Path | None) -> DataSet:
    """``torchvision.datasets.NAME`` from the files in ``directory``.

    Args:
        name: "torchvision:NAME".
        directory: its ``root``.

    Raises:
        UserError: no such class, no directory, or the files are not there.
    """
    from torchvision import datasets

    kind = getattr(datasets, name.partition(":")[2], None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset) and kind is not datasets.VisionDataset):
        raise UserError(f"`data` torchvision:NAME must name a class of torchvision.datasets, got {name!r}")
    arguments: dict[str, Any] = {}
    if "root" in inspect.signature(kind).parameters:
        if directory is None:
            raise UserError(f"`data_dir` is required with `data` {name}: pass what torchvision calls its root")
        if not directory.is_dir():
            raise UserError(f"`data_dir` must be an existing folder, got {directory}")
        arguments["root"] = str(directory)
    train = _construct(kind, arguments, TRAIN_ARGUMENTS)
    if isinstance(train, Exception):
        raise UserError(
            f"`data` {name} cannot be read from `data_dir` {directory} (nothing is downloaded): {_one_line(train)}"
        )
    test = _construct(kind, arguments, TEST_ARGUMENTS)
    if isinstance(test, Exception):
        LOG.warning("%s has no test split: %s", name, _one_line(test))
    tests = [] if isinstance(test, Exception) else [test]
    return _make(name, train, tests, getattr(train, "classes", ()))


def _construct(kind: Any, arguments: dict[str, Any], choices: tuple[dict[str, Any], ...]) -> Any:
    """The data set made with the first choice of arguments that works, else the last error."""
    parameters = inspect.signature(kind).parameters
    if "download" in parameters:
        arguments = {**arguments, "download": False}
    problem = Exception("it takes neither train= nor split=")
    for choice in choices:
        if choice.keys() <= parameters.keys():
            try:
                return kind(**arguments, **choice)
            except Exception as error:
                problem = error
                if not isinstance(error, ValueError | TypeError):
                    break  # the arguments were right, the files are not
    return problem


def load_hugging_face(name: str, directory: Path | None) -> DataSet:
    """A data set saved with ``save_to_disk``, or the image or Parquet files in a folder, by the package ``datasets``.

    Args:
        name: "hf:PATH".
        directory: what PATH is relative to; None for the current folder.

    Raises:
        UserError: the package is missing, nothing is there, or it cannot be read.
    """
    path = (directory or Path()) / Path(name.partition(":")[2]).expanduser()
    try:
        package = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"`data` {name} needs the package datasets, which is missing: pip install datasets") from None
    if not path.is_dir():
        raise UserError(
            f"`data` hf:PATH must be an existing folder, got {path} (nothing is downloaded): save the data set there "
            "with save_to_disk of the package datasets"
        )
    saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        found = package.load_from_disk(str(path)) if saved else package.load_dataset(str(path.resolve()))
    except Exception as error:
        raise UserError(f"`data` {name} cannot be read from {path}: {_one_line(error)}") from None
    splits: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {"train": found}
    if "train" not in splits and len(splits) != 1:
        raise UserError(f"`data` {name} must have a split named train, got {', '.join(splits)}")
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    tests = [splits[split] for split in TEST_SPLITS if split in splits and splits[split] is not train]
    return _make(name, train, tests, ())


def _make(name: str, train: Any, tests: list[Any], class_names: Any) -> DataSet:
    """Of the test splits, the first that has labels is taken."""
    pretraining = MapSource(train)
    labelled = pretraining.labels is not None
    sources = [MapSource(test) for test in tests] if labelled else []
    test = next((source for source in sources if source.labels is not None), None)
    if sources and test is None:
        LOG.warning("%s: the test split has no labels, so it is left out", name)
    return DataSet(
        name,
        pretraining,
        pretraining if labelled else None,
        test,
        _name_classes(pretraining, test, class_names),
        IMAGENET_MEAN,
        IMAGENET_DEVIATION,
    )


def _name_classes(train: MapSource, test: MapSource | None, given: Any) -> tuple[str, ...]:
    """The names that the data set gives if there are enough, else numbers."""
    labels = [source.labels for source in (train, test) if source is not None and source.labels is not None]
    if not labels:
        return ()
    count = 1 + max(int(part.max()) for part in labels)
    feature = (getattr(train.data_set, "features", None) or {}).get(train.label_key)
    for names in (given, getattr(feature, "names", None)):
        if isinstance(names, list | tuple) and len(names) >= count:
            return tuple(str(name) for name in names)
    return tuple(str(number) for number in range(count))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

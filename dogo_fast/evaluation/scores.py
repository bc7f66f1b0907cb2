"""Both measures of one backbone."""

from copy import deepcopy
from dataclasses import dataclass

from torch import nn

from dogo_fast.data import DataSet
from dogo_fast.evaluation.features import calibrate_batch_norm, extract_features, scorable
from dogo_fast.evaluation.knn import knn_accuracy
from dogo_fast.evaluation.linear import linear_accuracy


@dataclass(frozen=True)
class Scores:
    """Accuracies on the test split, 0 … 1."""

    knn: float
    linear: float


def evaluate_features(backbone: nn.Module, data: DataSet, workers: int = 0) -> Scores:
    """k-NN and linear accuracy of the backbone's features as it stands.

    Args:
        backbone: maps images [B, 3, H, W] to features [B, F].
        data: with labelled training and test images.
        workers: processes that decode what streams.

    Raises:
        ValueError: a data set without labels.
        UserError: features that are not finite, more than 1 % of the images are damaged, or a worker died.
    """
    if data.train is None or data.test is None:
        raise ValueError(f"data must have labelled training and test images, {data.name} has not")
    train, test = (extract_features(backbone, part, data, workers) for part in (data.train, data.test))
    with scorable(data):
        return Scores(knn=knn_accuracy(*train, *test), linear=linear_accuracy(*train, *test))


def evaluate_untrained(backbone: nn.Module, data: DataSet, workers: int = 0) -> Scores:
    """The same for a new network, after calibrating the batch norms of a copy on training images.

    Raises:
        ValueError, UserError: as ``evaluate_features``.
    """
    copy = deepcopy(backbone)
    calibrate_batch_norm(copy, data, workers)
    return evaluate_features(copy, data, workers)

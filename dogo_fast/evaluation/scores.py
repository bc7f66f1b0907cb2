"""Both measures of one backbone."""

from copy import deepcopy
from dataclasses import dataclass

from torch import nn

from dogo_fast.data import DataSet
from dogo_fast.evaluation.features import calibrate_batch_norm, extract_features
from dogo_fast.evaluation.knn import knn_accuracy
from dogo_fast.evaluation.linear import linear_accuracy


@dataclass(frozen=True)
class Scores:
    """Accuracies on the test split, 0 … 1."""

    knn: float
    linear: float


def evaluate_features(backbone: nn.Module, data: DataSet) -> Scores:
    """k-NN and linear accuracy of the backbone's features as it stands."""
    train, test = extract_features(backbone, data.train.images), extract_features(backbone, data.test.images)
    labels = data.train.labels, data.test.labels
    return Scores(
        knn=knn_accuracy(train, labels[0], test, labels[1]),
        linear=linear_accuracy(train, labels[0], test, labels[1]),
    )


def evaluate_untrained(backbone: nn.Module, data: DataSet) -> Scores:
    """The same for a new network, after calibrating the batch norms of a copy on training images."""
    copy = deepcopy(backbone)
    calibrate_batch_norm(copy, data.train.images)
    return evaluate_features(copy, data)

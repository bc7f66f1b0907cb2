"""How good frozen features are: weighted k-NN and a linear probe, always on the complete test split."""

from dogo_fast.evaluation.features import calibrate_batch_norm, extract_features
from dogo_fast.evaluation.knn import knn_accuracy
from dogo_fast.evaluation.linear import linear_accuracy
from dogo_fast.evaluation.scores import Scores, evaluate_features, evaluate_untrained

__all__ = [
    "Scores",
    "calibrate_batch_norm",
    "evaluate_features",
    "evaluate_untrained",
    "extract_features",
    "knn_accuracy",
    "linear_accuracy",
]

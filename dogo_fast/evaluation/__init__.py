"""How good frozen features are, always on complete test splits: k-NN, probes, few, wrong and unbalanced labels,
corruptions, transfer and fine-tuning."""

from dogo_fast.evaluation.corruptions import CORRUPTIONS, corrupt
from dogo_fast.evaluation.features import calibrate_batch_norm, extract_features
from dogo_fast.evaluation.finetune import finetuned_accuracy
from dogo_fast.evaluation.knn import knn_accuracy
from dogo_fast.evaluation.linear import LinearProbe, linear_accuracy
from dogo_fast.evaluation.probe import probe_accuracies
from dogo_fast.evaluation.scores import Scores, evaluate_features, evaluate_untrained
from dogo_fast.evaluation.subsets import balanced_subset, flip_labels, hold_out, power_law_subset
from dogo_fast.evaluation.suite import KINDS, Suite
from dogo_fast.evaluation.weights import Network, load_networks

__all__ = [
    "CORRUPTIONS",
    "KINDS",
    "LinearProbe",
    "Network",
    "Scores",
    "Suite",
    "balanced_subset",
    "calibrate_batch_norm",
    "corrupt",
    "evaluate_features",
    "evaluate_untrained",
    "extract_features",
    "finetuned_accuracy",
    "flip_labels",
    "hold_out",
    "knn_accuracy",
    "linear_accuracy",
    "load_networks",
    "power_law_subset",
    "probe_accuracies",
]

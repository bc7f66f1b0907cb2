"""Weighted k-nearest-neighbour classification by cosine similarity (Wu et al., 2018: instance discrimination)."""

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 1024


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.1,
) -> float:
    """Share of test rows whose label wins the vote of their nearest training rows.

    Each neighbour votes for its label with weight exp(cosine / temperature) (Wu et al., "Unsupervised Feature Learning
    via Non-Parametric Instance Discrimination", arXiv 1805.01978, section 3.4).

    Args:
        train_features, test_features: [N, F] and [M, F], any scale.
        train_labels, test_labels: int64 [N] and [M], from 0.
        neighbours: k; at most N are used.
        temperature: T > 0.

    Returns:
        the accuracy, 0 … 1.
    """
    keys = F.normalize(train_features, dim=1)
    classes = int(train_labels.max()) + 1
    correct = torch.zeros((), dtype=torch.long, device=keys.device)
    for features, labels in zip(test_features.split(BATCH), test_labels.split(BATCH), strict=True):
        cosines, indices = (F.normalize(features, dim=1) @ keys.T).topk(min(neighbours, len(keys)), dim=1)
        votes = torch.zeros(len(features), classes, dtype=cosines.dtype, device=keys.device)
        votes.scatter_add_(1, train_labels[indices], (cosines / temperature).exp())
        correct += (votes.argmax(dim=1) == labels).sum()
    return correct.item() / len(test_labels)

"""Weighted k-nearest-neighbour classification by cosine similarity (Wu et al., 2018: instance discrimination)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dogo_fast.evaluation.checks import check_rows, exponents, widened

QUERIES, KEYS = 1024, 1 << 16
"""Test and training rows whose cosines are held at once: 256 MiB in float32."""
VOTES = 1 << 24
"""Pairs of neighbours whose labels are compared at once."""


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
    via Non-Parametric Instance Discrimination", arXiv 1805.01978, section 3.4); of labels with equal votes the lowest
    wins. Cosines are of float32 (of float64 in that dtype), the weights are taken over that of the nearest, in float64.

    Args:
        train_features, test_features: [N, F] and [M, F], any scale.
        train_labels, test_labels: int64 [N] and [M], any numbers; a label that no training row has is never right.
        neighbours: k; at most N are used.
        temperature: T > 0.

    Returns:
        the accuracy, 0 … 1.

    Raises:
        ValueError: no rows, not a label a row, rows that are not finite, or k or T out of range.
    """
    check_rows(train=(train_features, train_labels), test=(test_features, test_labels))
    if neighbours < 1 or not 0 < temperature < float("inf"):
        raise ValueError(f"neighbours and temperature must be above 0, got {neighbours} and {temperature}")
    k = min(neighbours, len(train_features))
    keys = _unit(train_features)
    correct = torch.zeros((), dtype=torch.long, device=keys.device)
    step = max(1, min(QUERIES, VOTES // k**2))
    for features, labels in zip(test_features.split(step), test_labels.split(step), strict=True):
        cosines, indices = _nearest(_unit(features), keys, k)
        weights = ((cosines.double() - cosines[:, :1]) / temperature).exp()
        own = train_labels[indices]
        votes = ((own[:, :, None] == own[:, None, :]) * weights[:, None, :]).sum(dim=2)
        winners = own.masked_fill(votes < votes.amax(dim=1, keepdim=True), torch.iinfo(own.dtype).max).amin(dim=1)
        correct += (winners == labels).sum()
    return correct.item() / len(test_labels)


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1, whatever their scale."""
    rows = widened(features)
    return F.normalize(torch.ldexp(rows, -exponents(rows, 1)), dim=1)


def _nearest(rows: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosines of each row [B, k], in descending order, and which keys they are of."""
    best, which = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
    for start in range(0, len(keys), KEYS):
        cosines, indices = (rows @ keys[start : start + KEYS].T).topk(min(k, len(keys) - start, KEYS), dim=1)
        best, which = torch.cat([best, cosines], dim=1), torch.cat([which, indices + start], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        which = which.gather(1, order)
    return best, which

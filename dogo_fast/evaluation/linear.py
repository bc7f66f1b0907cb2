"""The linear probe: multinomial logistic regression on frozen, standardised features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dogo_fast.evaluation.checks import check_rows, exponents, widened

ITERATIONS = 200


def linear_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    penalty: float = 1.0,
) -> float:
    """Share of test rows that a logistic regression fitted to the training rows labels rightly.

    Features are standardised by the training rows' mean and standard deviation. The fit minimises Σ cross-entropy +
    penalty/2 · ‖weights‖² over all rows at once by L-BFGS (scikit-learn's LogisticRegression with C = 1/penalty).

    Args:
        train_features, test_features: [N, F] and [M, F].
        train_labels, test_labels: int64 [N] and [M], any numbers; a label that no training row has is never right.
        penalty: of the squared weights, the bias excepted.

    Returns:
        the accuracy, 0 … 1.

    Raises:
        ValueError: no rows, not a label a row, or rows that are not finite.
    """
    check_rows(train=(train_features, train_labels), test=(test_features, test_labels))
    train_features, test_features = widened(train_features), widened(test_features)
    scales = -exponents(train_features, 0)
    train_features, test_features = torch.ldexp(train_features, scales), torch.ldexp(test_features, scales)
    known, numbers = train_labels.unique(return_inverse=True)
    mean, deviation = train_features.mean(dim=0), train_features.std(dim=0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1)
    rows = (train_features - mean) / scale
    weight = torch.zeros(len(known), rows.shape[1], dtype=rows.dtype, device=rows.device, requires_grad=True)
    bias = torch.zeros(len(known), dtype=rows.dtype, device=rows.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(rows, weight, bias), numbers)
        loss = loss + penalty / (2 * len(rows)) * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(objective)
    with torch.no_grad():
        predictions = F.linear((test_features - mean) / scale, weight, bias).argmax(dim=1)
    right = int((known[predictions] == test_labels).sum())
    return right / len(test_labels)

"""The linear probe: multinomial logistic regression on frozen, standardised features."""

import torch
import torch.nn.functional as F
from torch import Tensor

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
        train_labels, test_labels: int64 [N] and [M], from 0.
        penalty: of the squared weights, the bias excepted.

    Returns:
        the accuracy, 0 … 1.
    """
    mean, deviation = train_features.mean(dim=0), train_features.std(dim=0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1)
    rows = (train_features - mean) / scale
    classes = int(train_labels.max()) + 1
    weight = torch.zeros(classes, rows.shape[1], dtype=rows.dtype, device=rows.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=rows.dtype, device=rows.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(rows, weight, bias), train_labels)
        loss = loss + penalty / (2 * len(rows)) * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(objective)
    with torch.no_grad():
        predictions = F.linear((test_features - mean) / scale, weight, bias).argmax(dim=1)
    return (predictions == test_labels).sum().item() / len(test_labels)

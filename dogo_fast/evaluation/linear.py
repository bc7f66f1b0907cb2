"""The linear probe: multinomial logistic regression on frozen, standardised features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dogo_fast.evaluation.checks import check_rows, exponents, widened

ITERATIONS = 200


class LinearProbe:
    """A logistic regression, fitted: ``accuracy(features, labels)`` of any rows.

    Features are standardised by the training rows' mean and standard deviation. The fit minimises Σ cross-entropy +
    penalty/2 · ‖weights‖² over all rows at once by L-BFGS (scikit-learn's LogisticRegression with C = 1/penalty).

    Args:
        features: [N, F].
        labels: int64 [N], any numbers.
        penalty: of the squared weights, the bias excepted.

    Raises:
        ValueError: no rows, not a label a row, or rows that are not finite.
    """

    def __init__(self, features: Tensor, labels: Tensor, penalty: float = 1.0) -> None:
        check_rows(train=(features, labels))
        features = widened(features)
        self._scales = -exponents(features, 0)
        features = torch.ldexp(features, self._scales)
        self._known, numbers = labels.unique(return_inverse=True)
        deviation = features.std(dim=0, correction=0)
        self._mean, self._deviation = features.mean(dim=0), torch.where(deviation > 0, deviation, 1)
        rows = (features - self._mean) / self._deviation
        self._weight = torch.zeros(len(self._known), rows.shape[1], dtype=rows.dtype, device=rows.device)
        self._bias = torch.zeros(len(self._known), dtype=rows.dtype, device=rows.device)
        with torch.enable_grad():
            self._fit(rows, numbers, penalty)

    def _fit(self, rows: Tensor, numbers: Tensor, penalty: float) -> None:
        learnt = [self._weight.requires_grad_(), self._bias.requires_grad_()]
        optimiser = torch.optim.LBFGS(
            learnt, max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(F.linear(rows, self._weight, self._bias), numbers)
            loss = loss + penalty / (2 * len(rows)) * self._weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(objective)
        self._weight, self._bias = self._weight.detach(), self._bias.detach()

    @property
    def device(self) -> torch.device:
        return self._weight.device

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of rows [M, F] that get their label; one that no training row has is never right.

        Raises:
            ValueError: as the class.
        """
        check_rows(test=(features, labels))
        rows = (torch.ldexp(widened(features), self._scales) - self._mean) / self._deviation
        predictions = F.linear(rows, self._weight, self._bias).argmax(dim=1)
        return int((self._known[predictions] == labels).sum()) / len(labels)


def linear_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    penalty: float = 1.0,
) -> float:
    """Share of test rows that a ``LinearProbe`` of the training rows labels rightly.

    Args:
        train_features, test_features: [N, F] and [M, F].
        train_labels, test_labels: int64 [N] and [M], any numbers.
        penalty: see ``LinearProbe``.

    Returns:
        the accuracy, 0 … 1.

    Raises:
        ValueError: no rows, not a label a row, or rows that are not finite.
    """
    check_rows(train=(train_features, train_labels), test=(test_features, test_labels))
    return LinearProbe(train_features, train_labels, penalty).accuracy(test_features, test_labels)

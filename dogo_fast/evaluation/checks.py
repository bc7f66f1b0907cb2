"""What the scores ask of features and labels."""

import torch
from torch import Tensor


def check_rows(**splits: tuple[Tensor, Tensor]) -> None:
    """Features [N, F] and labels [N] by the names of their splits.

    Raises:
        ValueError: no rows, not a label a row, labels that are no whole numbers, or rows that are not finite.
    """
    for name, (features, labels) in splits.items():
        if features.dim() != 2 or not features.numel() or labels.shape != features.shape[:1]:
            raise ValueError(
                f"{name}_features and {name}_labels must be [N, F] and [N] with N > 0, got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if labels.dtype.is_floating_point or labels.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise ValueError(f"{name}_labels must be whole numbers, got {labels.dtype}")
        bad = int((~features.isfinite().all(dim=1)).sum())
        if bad:
            raise ValueError(f"{name}_features must be finite, got {bad} of {len(features)} rows with NaN or infinity")


def widened(features: Tensor) -> Tensor:
    """16-bit features in float32, others as they are."""
    return features if features.dtype == torch.float64 else features.float()


def exponents(features: Tensor, dim: int) -> Tensor:
    """The power of two above the largest of each row (``dim`` 1) or column (0): scaling by it is exact, and squares of
    what is left neither overflow nor vanish."""
    return torch.frexp(features.abs().amax(dim=dim, keepdim=True)).exponent

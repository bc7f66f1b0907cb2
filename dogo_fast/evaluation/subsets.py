"""Which labels a probe is given: fewer, wrong or unbalanced ones, or all but some that are held out.

Every choice orders the images by a number drawn for each, from the seed and the number of images alone (NumPy's
PCG64), and takes the first: the same on every machine and for all networks of a comparison, and a smaller share or a
lower rate takes a part of what a larger one takes.
"""

import numpy as np
import torch
from torch import Tensor

NOISES = ("symmetric", "pair")


def balanced_subset(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices int64, ascending, of the same share of each class, rounded, of each at least one.

    Args:
        labels: int64 [N].
        share: above 0, up to 1.
        seed: of the choice.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    return _first_of_each(labels, [max(1, round(share * count)) for count in _counts(labels)], seed)


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of what is kept and of what is held out, the same share of each class; at least one of each class is
    kept.

    Args:
        labels: int64 [N].
        share: to hold out, above 0 and below 1.
        seed: of the choice.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    held = _first_of_each(labels, [min(count - 1, round(share * count)) for count in _counts(labels)], seed)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held] = False
    return kept.nonzero()[:, 0], held


def power_law_subset(labels: Tensor, exponent: float, seed: int, smallest: float = 0.05) -> Tensor:
    """Indices of an unbalanced part: all of the first class, ``smallest`` of the last, between them a power law.

    As the authors' CIFAR10Imbalanced, whose class c = 1 … C keeps a / (b + c^γ) images, n of the first and ``smallest``
    · n of the last, which they compute for ten classes.

    Args:
        labels: int64 [N].
        exponent: γ > 0; the authors take 0.2 and less balanced ones above it.
        seed: of the choice.
        smallest: share of the last class, above 0 and below 1.

    Raises:
        ValueError: an exponent or a share out of range, or a single class.
    """
    counts = _counts(labels)
    if exponent <= 0 or not 0 < smallest < 1 or len(counts) < 2:
        raise ValueError(
            "exponent must be above 0, smallest above 0 and below 1, and labels of two classes or more, got "
            f"{exponent}, {smallest} and {len(counts)}"
        )
    powers = np.arange(1, len(counts) + 1) ** float(exponent)
    offset = (smallest * powers[-1] - powers[0]) / (1 - smallest)
    shares = (offset + powers[0]) / (offset + powers)
    wanted = [max(1, round(share * count)) for share, count in zip(shares.tolist(), counts, strict=True)]
    return _first_of_each(labels, wanted, seed)


def flip_labels(labels: Tensor, rate: float, seed: int, kind: str = "symmetric") -> Tensor:
    """The labels with ``round(rate · N)`` of them wrong.

    Args:
        labels: int64 [N].
        rate: from 0 to 1.
        seed: of which are flipped, and to what.
        kind: ``"symmetric"``, to any other class with equal probability; ``"pair"``, to the next class, from the last
            to the first.

    Raises:
        ValueError: a rate out of range, another kind, or a single class.
    """
    classes, numbers = labels.unique(return_inverse=True)
    if not 0 <= rate <= 1 or kind not in NOISES or len(classes) < 2:
        raise ValueError(
            f"rate must be from 0 to 1, kind one of {', '.join(NOISES)}, and labels of two classes or more, got "
            f"{rate}, {kind!r} and {len(classes)}"
        )
    which = _order(len(labels), seed)[: round(rate * len(labels))].to(labels.device)
    steps = torch.ones_like(labels)
    if kind == "symmetric":
        steps = 1 + (_numbers(len(labels), seed, 1) * (len(classes) - 1)).long().to(labels.device)
    flipped = labels.clone()
    flipped[which] = classes[(numbers[which] + steps[which]) % len(classes)]
    return flipped


def _numbers(count: int, seed: int, stream: int = 0) -> Tensor:
    """float64 in [0, 1)."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64([seed, stream])).random(count))


def _order(count: int, seed: int) -> Tensor:
    return _numbers(count, seed).argsort(stable=True)


def _counts(labels: Tensor) -> list[int]:
    counts: list[int] = labels.unique(return_counts=True)[1].tolist()
    return counts


def _first_of_each(labels: Tensor, wanted: list[int], seed: int) -> Tensor:
    """The first so many of each class in the order that is drawn."""
    order = _order(len(labels), seed)
    ordered = labels.cpu()[order]
    chosen = [
        order[(ordered == label).nonzero()[:count, 0]]
        for label, count in zip(labels.cpu().unique(), wanted, strict=True)
    ]
    return torch.cat(chosen).sort().values

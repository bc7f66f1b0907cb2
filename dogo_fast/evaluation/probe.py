"""The linear probe as the paper trains it: a linear layer by Adam on frozen features, chosen on held-out images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dogo_fast.evaluation.checks import check_rows, widened
from dogo_fast.evaluation.subsets import hold_out

HELD_OUT = 0.15
"""Share of the training images on which the best epoch is chosen (the authors' code)."""
BATCH = 256


def probe_accuracies(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    seeds: Sequence[int] = (0,),
    epochs: int = 100,
    learning_rate: float = 3e-3,
) -> list[float]:
    """Share of test rows that a linear layer labels rightly, for each of several seeds.

    The layer is trained by Adam on 85 % of the training rows in batches of 256, of which none is dropped. Of its states
    after each epoch, that with the most right labels among the other 15 % is taken, the earliest of equals, and tested
    once. The paper's protocol is section 4.1 and the authors' code's, whose test loader drops the last batch. Features
    are taken as they are, divided by one number: the standard deviation of them all.

    Args:
        train_features, test_features: [N, F] and [M, F].
        train_labels, test_labels: int64 [N] and [M], any numbers; a label that no training row has is never right.
        seeds: of layers that are trained at once; each has a split, an order of rows and first weights of its own.
        epochs: passes over the rows.
        learning_rate: of Adam.

    Returns:
        accuracies, 0 … 1, one a seed.

    Raises:
        ValueError: no rows, not a label a row, rows that are not finite, no seed, or a number that is not above 0.
    """
    check_rows(train=(train_features, train_labels), test=(test_features, test_labels))
    if not seeds or epochs < 1 or not 0 < learning_rate < float("inf"):
        raise ValueError(
            f"seeds must be one or more, epochs and learning_rate above 0, got {seeds}, {epochs} and {learning_rate}"
        )
    train_features, test_features = widened(train_features), widened(test_features)
    scale = train_features.std(correction=0).clamp(min=torch.finfo(train_features.dtype).tiny)
    rows, test_rows = train_features / scale, test_features / scale
    device = rows.device
    known, numbers = train_labels.unique(return_inverse=True)
    splits = [hold_out(numbers.cpu(), HELD_OUT, seed) for seed in seeds]
    kept, held = (torch.stack([split[part] for split in splits]).to(device) for part in (0, 1))
    if not held.shape[1]:
        held = kept  # a class has too few images to hold any out
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    first = [torch.rand(rows.shape[1], len(known), generator=source, dtype=rows.dtype) for source in sources]
    weight = ((torch.stack(first) * 2 - 1) * rows.shape[1] ** -0.5).to(device).requires_grad_()
    bias = torch.zeros(len(seeds), 1, len(known), dtype=rows.dtype, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=learning_rate)

    def right(features: Tensor, labels: Tensor) -> Tensor:
        """How many, of each seed; features [S or 1, N, F]."""
        return (torch.baddbmm(bias, features.expand(len(seeds), -1, -1), weight).argmax(dim=2) == labels).sum(dim=1)

    best = torch.full((len(seeds),), -1, device=device)
    chosen = [weight.detach().clone(), bias.detach().clone()]
    for _ in range(epochs):
        order = torch.stack([torch.randperm(kept.shape[1], generator=source) for source in sources]).to(device)
        for batch in kept.gather(1, order).split(BATCH, dim=1):
            optimiser.zero_grad()
            logits = torch.baddbmm(bias, rows[batch], weight)
            # a sum over the seeds: each layer's gradient is that of its own mean
            (F.cross_entropy(logits.flatten(0, 1), numbers[batch].flatten()) * len(seeds)).backward()
            optimiser.step()
        with torch.no_grad():
            count = right(rows[held], numbers[held])
            better = count > best
            best = torch.where(better, count, best)
            for state, now in zip(chosen, (weight, bias), strict=True):
                state.copy_(torch.where(better[:, None, None], now, state))
    with torch.no_grad():
        weight, bias = chosen
        place = torch.searchsorted(known, test_labels.to(known)).clamp(max=len(known) - 1)
        place = torch.where(known[place] == test_labels, place, -1)
        counts = right(test_rows[None], place)
    return [int(count) / len(test_labels) for count in counts]

"""The specification itself: gradients by finite differences, and formulas written out independently."""

import math

import pytest
import torch
import torch.nn.functional as F
from numerics import projections
from torch import Tensor

from dogo_fast import reference


def doubles(N: int, D: int, count: int, seed: int = 0) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in projections(N, D, count=count, dtype=torch.float64, seed=seed)]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nt_xent_gradient_by_finite_differences(reduction: str) -> None:
    def loss(a: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
        return reference.nt_xent(a, b, temperature, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (*doubles(4, 3, 2), number(0.5)))


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_similarity_kl_gradient_by_finite_differences(reduction: str) -> None:
    def loss(*inputs: Tensor) -> Tensor:
        temperature, teacher_temperature = inputs[4:]
        return reference.similarity_kl(
            (inputs[0], inputs[1]),
            (inputs[2], inputs[3]),
            temperature,
            teacher_temperature=teacher_temperature,
            reduction=reduction,
            detach_teacher=False,
        )

    queries, teacher_queries = doubles(4, 3, 1)[0], doubles(4, 5, 1, seed=1)[0]
    keys, teacher_keys = doubles(6, 3, 1, seed=2)[0], doubles(6, 5, 1, seed=3)[0]
    assert torch.autograd.gradcheck(loss, (queries, keys, teacher_queries, teacher_keys, number(0.3), number(0.2)))


def test_dogo_loss_gradient_by_finite_differences_one_peer_at_a_time() -> None:
    """The detached teacher makes the total no gradient field; loss_1 as a function of peer 1 alone is one."""
    a_1, b_1, a_2, b_2 = doubles(4, 3, 4)

    def loss_1(a: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
        return reference.dogo_loss((a, b), (a_2.detach(), b_2.detach()), temperature, 0.2, kd_weight=(3.0, 1.0)).loss_1

    def loss_2(a: Tensor, b: Tensor) -> Tensor:
        return reference.dogo_loss((a_1.detach(), b_1.detach()), (a, b), 0.5, 0.2, kd_weight=(3.0, 1.0)).loss_2

    assert torch.autograd.gradcheck(loss_1, (a_1, b_1, number(0.5)))
    assert torch.autograd.gradcheck(loss_2, (a_2, b_2))


def test_simsiam_gradient_by_finite_differences() -> None:
    z_a, z_b, p_a, p_b = doubles(4, 3, 4)
    assert torch.autograd.gradcheck(lambda x, y: reference.simsiam(z_a, z_b, x, y), (p_a, p_b))
    loss = reference.simsiam(z_a, z_b, p_a, p_b)
    assert torch.autograd.grad(loss, (z_a, z_b), allow_unused=True) == (None, None)


def test_nt_xent_of_two_images_worked_by_hand() -> None:
    """a_i = b_i = e_i: each row has its positive at cosine 1 and two negatives at cosine 0."""
    rows = reference.nt_xent(3 * torch.eye(2).double(), 5 * torch.eye(2).double(), 0.5, reduction="none")
    expected = math.log(math.exp(2) + 2) - 2
    torch.testing.assert_close(rows, torch.full((4,), expected, dtype=torch.float64))


def test_simsiam_is_minus_one_for_aligned_rows_and_plus_one_for_opposite_ones() -> None:
    (z,) = projections(5, 7, count=1)
    assert reference.simsiam(z, z, 2 * z, 3 * z).item() == pytest.approx(-1.0)
    assert reference.simsiam(z, z, -2 * z, -z).item() == pytest.approx(1.0)


def published_recipe(peer_1: list[Tensor], peer_2: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of each peer as the authors' code computes it: similarities by broadcasting, masks and cross-entropy for
    NT-Xent at temperature 0.5; F.kl_div of log(softmax) with its default reduction, weights 100 and 1."""
    losses, distributions = [], []
    for a, b in (peer_1, peer_2):
        N = a.shape[0]
        both = torch.cat([b, a])
        similarities = F.cosine_similarity(both[:, None, :], both[None, :, :], dim=-1)
        upper, lower = torch.diagonal(similarities, N), torch.diagonal(similarities, -N)
        positives = torch.cat([upper, lower])[:, None]
        keep = torch.ones(2 * N, 2 * N, dtype=torch.bool).fill_diagonal_(False)
        keep &= ~torch.eye(2 * N, dtype=torch.bool).roll(N, 0)
        negatives = similarities[keep].view(2 * N, -1)
        logits = torch.cat([positives, negatives], dim=1) / 0.5
        target = torch.zeros(2 * N, dtype=torch.long)
        losses.append(F.cross_entropy(logits, target, reduction="sum") / (2 * N))
        cross = F.cosine_similarity(a[:, None, :], b[None, :, :], dim=-1)
        distributions.append(torch.softmax(cross / 0.1, dim=1))
    kl_1 = F.kl_div(torch.log(distributions[0]), distributions[1].detach())
    kl_2 = F.kl_div(torch.log(distributions[1]), distributions[0].detach())
    return losses[0] + 100 * kl_1, losses[1] + 1 * kl_2


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_the_authors_recipe_gives_the_value_of_their_published_formula() -> None:
    inputs = projections(64, 128, count=4)
    loss_1, loss_2 = published_recipe(inputs[:2], inputs[2:])
    ours = reference.dogo_loss(
        (inputs[0], inputs[1]), (inputs[2], inputs[3]), 0.5, 0.1, kd_weight=(100, 1), kl_reduction="mean"
    )
    assert abs(ours.loss_1 - loss_1) <= 1e-6 * loss_1.abs()
    assert abs(ours.loss_2 - loss_2) <= 1e-6 * loss_2.abs()

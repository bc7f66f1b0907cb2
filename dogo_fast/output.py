"""What a loss of several parts returns."""

from typing import NamedTuple

from torch import Tensor


class DoGoLossOutput(NamedTuple):
    """Every part of the DoGo loss, each a 0-d tensor; ``loss = loss_1 + loss_2``, ``loss_p = nt_xent_p + w_p ·
    kl_p``."""

    loss: Tensor
    loss_1: Tensor
    loss_2: Tensor
    nt_xent_1: Tensor
    nt_xent_2: Tensor
    kl_1: Tensor
    kl_2: Tensor


class CohortLossOutput(NamedTuple):
    """Every part of the loss of K peers: ``loss`` and, with one a peer, ``losses``, ``nt_xents`` and ``kls``, all 0-d;
    ``loss`` is the sum of ``losses``, each nt_xent + w_p · kl, where kl is the mean of those from the others."""

    loss: Tensor
    losses: tuple[Tensor, ...]
    nt_xents: tuple[Tensor, ...]
    kls: tuple[Tensor, ...]

"""What each peer minimises: its own loss, SimCLR's or SimSiam's, plus the distillation from the other peers.

    loss_p = own_p + w_p · mean over the others q of KL(P_q ‖ P_p),  loss = Σ loss_p

    method of p    own_p                                       P_p as student from    P_p as teacher from
    simclr         NT-Xent of the projections                  projections            projections
    simsiam        negative cosine, predictions ↔ projections  predictions            projections

A teacher is always held constant. SimCLR peers are one call, two of them one fused operator; a weight of 0 leaves the
distillation out, so that a peer's numbers are those of training it alone.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from dogo_fast import functional
from dogo_fast.peers import METHODS, PeerOutput

OWN_LOSS = {"simclr": "nt_xent", "simsiam": "simsiam"}


class Objective:
    """The loss of all peers, and its parts: ``objective(outputs)``.

    Args:
        methods: of each peer, ``"simclr"`` or ``"simsiam"``.
        kd_weights: w of each peer, ≥ 0.
        temperature: τ of NT-Xent.
        kd_temperature: T of the similarity distributions.
        kl_reduction: ``"batchmean"``, ``"mean"`` or ``"sum"``.

    ``names``: what the parts are called, ``loss``, ``loss_1``, ``loss_2`` …, then each peer's own loss and its KL.

    Raises:
        ValueError: an unknown method.
    """

    def __init__(
        self,
        methods: Sequence[str],
        kd_weights: Sequence[float],
        temperature: float,
        kd_temperature: float,
        kl_reduction: str = "batchmean",
    ) -> None:
        for method in methods:
            if method not in METHODS:
                raise ValueError(f"methods must be of {', '.join(METHODS)}, got {method!r}")
        self.methods, self.kd_weights = tuple(methods), tuple(kd_weights)
        self.temperature, self.kd_temperature, self.kl_reduction = temperature, kd_temperature, kl_reduction
        own = [f"{OWN_LOSS[method]}_{peer}" for peer, method in enumerate(methods, 1)]
        distilled = [f"kl_{peer}" for peer, weight in enumerate(kd_weights, 1) if weight > 0]
        self.names = ("loss", *(f"loss_{peer}" for peer in range(1, len(self.methods) + 1)), *own, *distilled)

    def __call__(self, outputs: Sequence[PeerOutput], ramp: Tensor | None = None) -> tuple[Tensor, ...]:
        """0-d tensors in the order of ``names``.

        Args:
            outputs: of all peers, view a in the first half of the rows.
            ramp: a factor of the distillation's weights, 0-d, where they rise over the first epochs; or None.
        """
        if set(self.methods) == {"simclr"} and any(self.kd_weights):
            return self._fused(outputs, ramp)
        own = [self._own(method, output) for method, output in zip(self.methods, outputs, strict=True)]
        losses, distilled = list(own), []
        for peer, weight in enumerate(self.kd_weights):
            if weight > 0:
                kls = [self._distil(outputs[peer], other) for other in outputs if other is not outputs[peer]]
                kl = kls[0] if len(kls) == 1 else torch.stack(kls).mean()
                losses[peer] = own[peer] + (weight if ramp is None else weight * ramp) * kl
                distilled.append(kl)
        return (functools.reduce(torch.add, losses), *losses, *own, *distilled)

    def _fused(self, outputs: Sequence[PeerOutput], ramp: Tensor | None) -> tuple[Tensor, ...]:
        result = functional.cohort_loss(
            [_views(output.projections) for output in outputs],
            self.temperature,
            self.kd_temperature,
            kd_weight=self.kd_weights,
            kl_reduction=self.kl_reduction,
        )
        loss, losses = result.loss, result.losses
        if ramp is not None:
            parts = zip(result.nt_xents, self.kd_weights, result.kls, strict=True)
            losses = tuple(own + weight * ramp * kl for own, weight, kl in parts)
            loss = functools.reduce(torch.add, losses)
        kls = (kl for kl, weight in zip(result.kls, self.kd_weights, strict=True) if weight > 0)
        return (loss, *losses, *result.nt_xents, *kls)

    def _own(self, method: str, output: PeerOutput) -> Tensor:
        projections = _views(output.projections)
        if method == "simclr":
            return functional.nt_xent(*projections, self.temperature)
        assert output.predictions is not None
        return functional.simsiam(*projections, *_views(output.predictions))

    def _distil(self, student: PeerOutput, teacher: PeerOutput) -> Tensor:
        """KL(teacher ‖ student) of their similarity distributions; the function holds the teacher constant."""
        learns = student.projections if student.predictions is None else student.predictions
        return functional.similarity_kl(
            _views(learns), _views(teacher.projections), self.kd_temperature, reduction=self.kl_reduction
        )


def _views(rows: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.chunk(rows, 2)
    return first, second

"""The specification: every loss of dogo_fast, dense, in plain PyTorch.

Each function is the equation, written once, in whatever floating dtype its inputs have. Nothing here is fast and
nothing is checked; every test holds the fused kernels against these functions evaluated in float64.

With â = a / max(‖a‖, 1e-12) and N rows in each view:

    NT-Xent          z = [a; b],  s_ij = ⟨ẑ_i, ẑ_j⟩,  pos(i) = i ± N
                     ℓ_i = log Σ_{j≠i} exp(s_ij / τ) − s_{i,pos(i)} / τ                        (SimCLR, equation 1)
    similarity KL    c_ij = ⟨q̂_i, k̂_j⟩,  P_ij = softmax_j(c_ij / T)
                     KL(P_teacher ‖ P_student)_i = Σ_j P_teacher (log P_teacher − log P_student)
    DoGo             loss_p = nt_xent_p + w_p · KL(P_other ‖ P_p),  loss = loss_1 + loss_2     (DoGo, equations 1 to 4)
    cohort of K      loss_p = nt_xent_p + w_p · mean over q ≠ p of KL(P_q ‖ P_p)
    SimSiam          −½ [⟨sg(ẑ_a), p̂_b⟩ + ⟨sg(ẑ_b), p̂_a⟩], mean over rows                     (SimSiam, equation 4)

Sources: Bhat, Arani, Zonooz, "Distill on the Go", CVPR-W 2021, arXiv 2104.09866; Chen et al., "A Simple Framework for
Contrastive Learning of Visual Representations", arXiv 2002.05709; Chen, He, "Exploring Simple Siamese Representation
Learning", arXiv 2011.10566.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dogo_fast.output import CohortLossOutput, DoGoLossOutput

Pair = tuple[Tensor, Tensor]


def cosine_similarity(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosines of every query row [R, D] with every key row [C, D]: [R, C]."""
    return F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T


def nt_xent(a: Tensor, b: Tensor, temperature: float | Tensor = 0.5, *, reduction: str = "mean") -> Tensor:
    """NT-Xent of the views a, b [N, D]; ``"none"`` gives [2N], view a first."""
    n = a.shape[0]
    z = torch.cat([a, b])
    logits = cosine_similarity(z, z) / temperature
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    rows = logits.masked_fill(itself, -torch.inf).logsumexp(dim=1) - positive
    return _reduce(rows, reduction)


def similarity_kl(
    student: Pair,
    teacher: Pair,
    temperature: float | Tensor = 0.1,
    *,
    teacher_temperature: float | Tensor | None = None,
    reduction: str = "batchmean",
    detach_teacher: bool = True,
) -> Tensor:
    """KL(teacher ‖ student) of the row softmax over cosines; pairs are (queries [R, D], keys [C, D])."""
    if teacher_temperature is None:
        teacher_temperature = temperature
    log_student = torch.log_softmax(cosine_similarity(*student) / temperature, dim=1)
    log_teacher = torch.log_softmax(cosine_similarity(*teacher) / teacher_temperature, dim=1)
    if detach_teacher:
        log_teacher = log_teacher.detach()
    rows = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=1)
    if reduction == "mean":  # over all R × C terms, as F.kl_div; "batchmean" is over the R rows
        return rows.mean() / log_student.shape[1]
    return _reduce(rows, reduction.removeprefix("batch"))


def dogo_loss(
    peer_1: Pair,
    peer_2: Pair,
    temperature: float | Tensor = 0.5,
    kd_temperature: float | Tensor = 0.1,
    *,
    kd_weight: tuple[float, float] = (1.0, 1.0),
    kl_reduction: str = "batchmean",
) -> DoGoLossOutput:
    """The whole DoGo loss of two peers, each a pair of views (a, b) [N, D_p]."""
    nt_xent_1 = nt_xent(*peer_1, temperature)
    nt_xent_2 = nt_xent(*peer_2, temperature)
    kl_1 = similarity_kl(peer_1, peer_2, kd_temperature, reduction=kl_reduction)
    kl_2 = similarity_kl(peer_2, peer_1, kd_temperature, reduction=kl_reduction)
    loss_1 = nt_xent_1 + kd_weight[0] * kl_1
    loss_2 = nt_xent_2 + kd_weight[1] * kl_2
    return DoGoLossOutput(loss_1 + loss_2, loss_1, loss_2, nt_xent_1, nt_xent_2, kl_1, kl_2)


def cohort_loss(
    peers: Sequence[Pair],
    temperature: float | Tensor = 0.5,
    kd_temperature: float | Tensor = 0.1,
    *,
    kd_weight: Sequence[float],
    kl_reduction: str = "batchmean",
) -> CohortLossOutput:
    """The loss of K peers, each a pair of views (a, b) [N, D_p], each distilled from the mean of the others' KLs."""
    nt_xents = tuple(nt_xent(*peer, temperature) for peer in peers)
    kls = tuple(
        torch.stack(
            [
                similarity_kl(student, teacher, kd_temperature, reduction=kl_reduction)
                for other, teacher in enumerate(peers)
                if other != number
            ]
        ).mean()
        for number, student in enumerate(peers)
    )
    losses = tuple(own + weight * kl for own, weight, kl in zip(nt_xents, kd_weight, kls, strict=True))
    return CohortLossOutput(torch.stack(losses).sum(), losses, nt_xents, kls)


def simsiam(z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
    """Symmetric negative cosine of predictions p and constant projections z, all [N, D]: a 0-d tensor in [−1, 1]."""
    z_a, z_b = F.normalize(z_a.detach(), dim=1), F.normalize(z_b.detach(), dim=1)
    p_a, p_b = F.normalize(p_a, dim=1), F.normalize(p_b, dim=1)
    return -0.5 * ((z_a * p_b).sum(dim=1).mean() + (z_b * p_a).sum(dim=1).mean())


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()

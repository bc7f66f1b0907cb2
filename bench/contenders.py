"""What the losses are measured against. Each is asked for the same value; its error against float64 is recorded.

``dense`` is the formula of dogo_fast/reference.py in the dtype of the inputs; ``compile`` is torch.compile of it,
for that shape alone. ``authors`` is the formula of the DoGo authors' published code, written anew: cosines by
broadcasting, [2N, 2N, D]. Of lightly and pytorch-metric-learning come the NT-Xent, beside the dense KL where the whole
loss is asked for; both synchronise with the host, so they are not captured. cut-cross-entropy and inf-cl have no loss
that leaves a row's similarity with itself out, so neither computes an NT-Xent: they do not apply.
"""

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dogo_fast import functional, reference

from .timing import Contender, Loss

TEMPERATURE, KD_TEMPERATURE = 0.5, 0.1
FUSED = {"cpu": "cpp", "cuda": "triton"}
"""Our backend on each device."""
LIBRARIES = {"lightly": "lightly", "metric-learning": "pytorch_metric_learning"}
CONTENDERS = ("dense", "compile", *LIBRARIES, "authors")


def contenders(loss: str, device: str, wanted: tuple[str, ...]) -> list[Contender]:
    """Those of the wanted that are installed and apply, and ours, for "dogo_loss", "nt_xent" or "similarity_kl"."""
    others = [
        _contender(name, loss)
        for name in wanted
        if name not in LIBRARIES or (loss != "similarity_kl" and importlib.util.find_spec(LIBRARIES[name]))
    ]
    return [*others, Contender("ours", lambda: fused(loss, FUSED[device]))]


def _contender(name: str, loss: str) -> Contender:
    if name == "compile":
        return Contender(name, lambda: _compiled(loss))
    if name == "dense":
        return Contender(name, lambda: dense(loss))
    prepare = {
        "lightly": lambda: _of_parts(loss, _lightly(), _dense_kl),
        "metric-learning": lambda: _of_parts(loss, _metric_learning(), _dense_kl),
        "authors": lambda: _of_parts(loss, _authors_nt_xent, _authors_kl),
    }[name]
    return Contender(name, prepare, capturable=False)


def dense(loss: str) -> Loss:
    """The dense formula of two peers' views a, b and c, d; also the oracle, on float64 inputs."""
    return _formula(loss, reference)


def fused(loss: str, backend: str) -> Loss:
    """Ours."""
    return _formula(loss, functional, backend=backend)


def _formula(loss: str, module: Any, **options: Any) -> Loss:
    """Reference and functional have the same functions."""
    formulas: dict[str, Loss] = {
        "dogo_loss": lambda a, b, c, d: module.dogo_loss((a, b), (c, d), TEMPERATURE, KD_TEMPERATURE, **options).loss,
        "nt_xent": lambda a, b: module.nt_xent(a, b, TEMPERATURE, **options),
        "similarity_kl": lambda a, b, c, d: module.similarity_kl(
            (a, b), (c.detach(), d.detach()), KD_TEMPERATURE, **options
        ),
    }
    return formulas[loss]


def _compiled(loss: str) -> Loss:
    torch.compiler.reset()  # else the second shape is compiled for all shapes, which is slower
    compiled: Loss = torch.compile(dense(loss), dynamic=False)
    return compiled


def _of_parts(loss: str, nt_xent: Loss, kl: Loss) -> Loss:
    """``kl``: of a student's views and a teacher's."""
    formulas: dict[str, Loss] = {
        "dogo_loss": lambda a, b, c, d: nt_xent(a, b) + nt_xent(c, d) + kl((a, b), (c, d)) + kl((c, d), (a, b)),
        "nt_xent": nt_xent,
        "similarity_kl": lambda a, b, c, d: kl((a, b), (c.detach(), d.detach())),
    }
    return formulas[loss]


def _dense_kl(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    return reference.similarity_kl(student, teacher, KD_TEMPERATURE)


def _lightly() -> Loss:
    from lightly.loss import NTXentLoss

    criterion: Loss = NTXentLoss(temperature=TEMPERATURE)
    return criterion


def _metric_learning() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss

    criterion = NTXentLoss(temperature=TEMPERATURE)

    def nt_xent(a: Tensor, b: Tensor) -> Tensor:
        images = torch.arange(a.shape[0], device=a.device)
        value: Tensor = criterion(torch.cat([a, b]), torch.cat([images, images]))
        return value

    return nt_xent


def _broadcast_cosines(x: Tensor, y: Tensor) -> Tensor:
    return F.cosine_similarity(x[:, None], y[None], dim=2)


def _authors_nt_xent(a: Tensor, b: Tensor) -> Tensor:
    """Cross-entropy over [positive, negatives] that masks pick out of the square of cosines."""
    N = a.shape[0]
    z = torch.cat([a, b])
    cosines = _broadcast_cosines(z, z)
    positives = torch.cat([cosines.diagonal(N), cosines.diagonal(-N)])[:, None]
    itself = torch.eye(2 * N, dtype=torch.bool, device=a.device)
    rest = ~(itself | itself.roll(N, dims=1))
    logits = torch.cat([positives, cosines[rest].view(2 * N, -1)], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(2 * N, dtype=torch.long, device=a.device), reduction="sum") / (2 * N)


def _authors_kl(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Theirs takes the logarithm of a softmax and the mean over all terms; batchmean here, as everywhere else."""
    own = torch.softmax(_broadcast_cosines(*student) / KD_TEMPERATURE, dim=1).log()
    other = torch.softmax(_broadcast_cosines(*teacher) / KD_TEMPERATURE, dim=1).detach()
    return F.kl_div(own, other, reduction="batchmean")

"""What the losses are measured against. Each is asked for the same value; its error against float64 is recorded.

``dense`` is the formula of dogo_fast/reference.py in the dtype of the inputs; ``compile`` and ``max-autotune`` are
torch.compile of it, for that shape alone. ``authors`` is the formula of the DoGo authors' published code, written anew:
cosines by broadcasting, [2N, 2N, D]. Of lightly and pytorch-metric-learning come the NT-Xent, beside the dense KL where
the whole loss is asked for; both synchronise with the host, so they are not captured. cut-cross-entropy and inf-cl have
no loss that leaves a row's similarity with itself out, so neither computes an NT-Xent: they do not apply.
"""

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dogo_fast import functional, reference

from .timing import Contender, Loss

TEMPERATURE, KD_TEMPERATURE = 0.5, 0.1
FUSED = {"cpu": "cpp", "cuda": "triton"}
"""Our backend on each device."""


def contenders(loss: str, device: str, wanted: tuple[str, ...]) -> list[Contender]:
    """Ours and those of the wanted that are installed and apply, for "dogo_loss", "nt_xent" or "similarity_kl"."""
    known: dict[str, Callable[[str, str], Contender | None]] = {
        "dense": lambda loss, device: _dense(loss),
        "compile": lambda loss, device: _compiled(loss, "compile", None),
        "max-autotune": lambda loss, device: _compiled(loss, "max-autotune", "max-autotune-no-cudagraphs"),
        "lightly": lambda loss, device: _library(loss, "lightly", _lightly),
        "metric-learning": lambda loss, device: _library(loss, "pytorch_metric_learning", _metric_learning),
        "authors": lambda loss, device: _authors(loss),
    }
    found = [known[name](loss, device) for name in wanted]
    return [*(each for each in found if each is not None), Contender("ours", lambda: _ours(loss, FUSED[device]))]


CONTENDERS = ("dense", "compile", "max-autotune", "lightly", "metric-learning", "authors")


def dense(loss: str) -> Loss:
    """The dense formula of two peers' views a, b and c, d; also the oracle, on float64 inputs."""
    formulas: dict[str, Loss] = {
        "dogo_loss": lambda a, b, c, d: reference.dogo_loss((a, b), (c, d), TEMPERATURE, KD_TEMPERATURE).loss,
        "nt_xent": lambda a, b: reference.nt_xent(a, b, TEMPERATURE),
        "similarity_kl": lambda a, b, c, d: reference.similarity_kl((a, b), (c.detach(), d.detach()), KD_TEMPERATURE),
    }
    return formulas[loss]


def _ours(loss: str, backend: str) -> Loss:
    formulas: dict[str, Loss] = {
        "dogo_loss": lambda a, b, c, d: (
            functional.dogo_loss((a, b), (c, d), TEMPERATURE, KD_TEMPERATURE, backend=backend).loss
        ),
        "nt_xent": lambda a, b: functional.nt_xent(a, b, TEMPERATURE, backend=backend),
        "similarity_kl": lambda a, b, c, d: functional.similarity_kl(
            (a, b), (c.detach(), d.detach()), KD_TEMPERATURE, backend=backend
        ),
    }
    return formulas[loss]


def _square_matrices(count: float) -> Callable[[int, int, int], float]:
    """Bytes of so many [2N, 2N] matrices."""
    return lambda N, D, itemsize: count * 4 * N**2 * itemsize


def _pairs_by_negatives(N: int, D: int, itemsize: int) -> float:
    """Each positive pair beside all negative ones: 88 MB at N = 64, ten matrices of 8 N³ numbers."""
    return 80.0 * N**3 * itemsize


def _dense(loss: str) -> Contender:
    return Contender("dense", lambda: dense(loss), takes=_square_matrices(3))


def _compiled(loss: str, name: str, mode: str | None) -> Contender:
    def prepare() -> Loss:
        torch._dynamo.reset()  # else the second shape is compiled for all shapes, which is slower
        return torch.compile(dense(loss), mode=mode, dynamic=False)

    return Contender(name, prepare, takes=_square_matrices(2))


def _library(loss: str, module: str, nt_xent: Callable[[], Loss]) -> Contender | None:
    if loss == "similarity_kl" or importlib.util.find_spec(module) is None:
        return None
    name = {"pytorch_metric_learning": "metric-learning"}.get(module, module)
    takes = _pairs_by_negatives if nt_xent is _metric_learning else _square_matrices(4)
    return Contender(name, lambda: _with_dense_kl(loss, nt_xent()), capturable=False, takes=takes)


def _with_dense_kl(loss: str, nt_xent: Loss) -> Loss:
    if loss == "nt_xent":
        return nt_xent

    def whole(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        kl_1 = reference.similarity_kl((a, b), (c, d), KD_TEMPERATURE)
        kl_2 = reference.similarity_kl((c, d), (a, b), KD_TEMPERATURE)
        return nt_xent(a, b) + nt_xent(c, d) + kl_1 + kl_2

    return whole


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


def _authors(loss: str) -> Contender:
    formulas: dict[str, Loss] = {
        "dogo_loss": _with_kl_of(_authors_nt_xent, _authors_kl),
        "nt_xent": _authors_nt_xent,
        "similarity_kl": lambda a, b, c, d: _authors_kl((a, b), (c.detach(), d.detach())),
    }
    # of the size of [N, N, D], as measured at N = 256: 1.1 GiB of the whole loss in float32
    tensors = {"dogo_loss": 35, "nt_xent": 24, "similarity_kl": 6}[loss]
    takes = lambda N, D, itemsize: float(tensors * N**2 * D * itemsize)  # noqa: E731
    return Contender("authors", lambda: formulas[loss], capturable=False, takes=takes)


def _with_kl_of(nt_xent: Loss, kl: Callable[..., Tensor]) -> Loss:
    return lambda a, b, c, d: nt_xent(a, b) + nt_xent(c, d) + kl((a, b), (c, d)) + kl((c, d), (a, b))


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

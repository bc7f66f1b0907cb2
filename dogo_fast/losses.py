"""nn.Module faces of the losses in ``dogo_fast.functional``: configure once, call with projections."""

from collections.abc import Sequence
from typing import overload

from torch import Tensor, nn

from dogo_fast import functional, validation
from dogo_fast.output import CohortLossOutput, DoGoLossOutput

Pair = tuple[Tensor, Tensor]


class NTXentLoss(nn.Module):
    """NT-Xent of two views of one batch; see ``functional.nt_xent`` for shapes, dtypes and errors.

    Args:
        temperature: τ, a number above 0 or a 0-d tensor; an ``nn.Parameter`` is registered and learnt.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        backend: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Raises:
        TypeError, ValueError: a setting that is not allowed; when called, as ``functional.nt_xent``.

    Example::

        criterion = NTXentLoss(temperature=0.5)
        criterion(a, b).backward()      # a, b: projections [N, D]
    """

    temperature: float | Tensor

    def __init__(self, temperature: float | Tensor = 0.5, *, reduction: str = "mean", backend: str = "auto") -> None:
        super().__init__()
        _set_temperature(self, "temperature", temperature)
        self.reduction = validation.check_choice("reduction", reduction, functional.NT_XENT_REDUCTIONS)
        self.backend = validation.check_choice("backend", backend, functional.BACKENDS)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Raw projections a, b [N ≥ 2, D] to a 0-d tensor, or [2N] with ``reduction="none"``, in nats."""
        return functional.nt_xent(a, b, self.temperature, reduction=self.reduction, backend=self.backend)

    def extra_repr(self) -> str:
        return f"temperature={_shown(self.temperature)}, reduction={self.reduction!r}, backend={self.backend!r}"


class SimilarityKLLoss(nn.Module):
    """KL(teacher ‖ student) of softmax similarities; see ``functional.similarity_kl`` for shapes, dtypes and errors.

    Args:
        temperature: T of the student, a number above 0 or a 0-d tensor; an ``nn.Parameter`` is registered and learnt.
        teacher_temperature: T of the teacher, likewise; None means the student's.
        reduction: ``"batchmean"``, ``"mean"``, ``"sum"`` or ``"none"``.
        detach_teacher: hold the teacher's distribution constant.
        backend: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Raises:
        TypeError, ValueError: a setting that is not allowed; when called, as ``functional.similarity_kl``.
    """

    temperature: float | Tensor
    teacher_temperature: float | Tensor | None

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        teacher_temperature: float | Tensor | None = None,
        reduction: str = "batchmean",
        detach_teacher: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _set_temperature(self, "temperature", temperature)
        _set_temperature(self, "teacher_temperature", teacher_temperature)
        self.reduction = validation.check_choice("reduction", reduction, functional.KL_REDUCTIONS)
        self.detach_teacher = validation.check_flag("detach_teacher", detach_teacher)
        self.backend = validation.check_choice("backend", backend, functional.BACKENDS)

    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
        """Pairs (queries [R, D], keys [C, D]) to a 0-d tensor, or [R] with ``reduction="none"``, in nats."""
        return functional.similarity_kl(
            student,
            teacher,
            self.temperature,
            teacher_temperature=self.teacher_temperature,
            reduction=self.reduction,
            detach_teacher=self.detach_teacher,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={_shown(self.temperature)}, teacher_temperature={_shown(self.teacher_temperature)}, "
            f"reduction={self.reduction!r}, detach_teacher={self.detach_teacher}, backend={self.backend!r}"
        )


class DoGoLoss(nn.Module):
    """The whole DoGo loss of two peers; see ``functional.dogo_loss`` for shapes, dtypes and errors.

    Args:
        temperature: τ of NT-Xent, a number above 0 or a 0-d tensor; an ``nn.Parameter`` is registered and learnt.
        kd_temperature: T of the similarity distributions, likewise.
        kd_weight: weight of the distillation term, any finite number or one per peer.
        kl_reduction: ``"batchmean"``, ``"mean"`` (divides by N² as the authors' code does) or ``"sum"``.
        backend: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Raises:
        TypeError, ValueError: a setting that is not allowed; when called, as ``functional.dogo_loss``.

    Example::

        criterion = DoGoLoss()
        output = criterion((a_1, b_1), (a_2, b_2))
        output.loss.backward()

    The recipe of the authors' published code is ``DoGoLoss(0.5, 0.1, kd_weight=(100, 1), kl_reduction="mean")``.
    """

    temperature: float | Tensor
    kd_temperature: float | Tensor

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        kd_temperature: float | Tensor = 0.1,
        *,
        kd_weight: float | Sequence[float] = 1.0,
        kl_reduction: str = "batchmean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _set_temperature(self, "temperature", temperature)
        _set_temperature(self, "kd_temperature", kd_temperature)
        count = len(kd_weight) if isinstance(kd_weight, Sequence) and len(kd_weight) > 2 else 2
        weights = validation.check_weights("kd_weight", kd_weight, count)
        self.kd_weight = weights if isinstance(kd_weight, Sequence) else weights[0]
        self.kl_reduction = validation.check_choice("kl_reduction", kl_reduction, functional.DOGO_KL_REDUCTIONS)
        self.backend = validation.check_choice("backend", backend, functional.BACKENDS)

    @overload
    def forward(self, peer_1: Pair, peer_2: Pair, /) -> DoGoLossOutput: ...
    @overload
    def forward(self, peer_1: Pair, peer_2: Pair, peer_3: Pair, /, *others: Pair) -> CohortLossOutput: ...
    def forward(self, *peers: Pair) -> DoGoLossOutput | CohortLossOutput:
        """Pairs (a, b) of raw projections [N ≥ 2, D_p], one a peer. Of two peers ``DoGoLossOutput(loss, loss_1, loss_2,
        nt_xent_1, nt_xent_2, kl_1, kl_2)``, of more ``CohortLossOutput(loss, losses, nt_xents, kls)``, each distilled
        from the mean of the others' KLs; 0-d tensors, in nats."""
        if len(peers) == 2:
            return functional.dogo_loss(
                *peers,
                self.temperature,
                self.kd_temperature,
                kd_weight=self.kd_weight,
                kl_reduction=self.kl_reduction,
                backend=self.backend,
            )
        return functional.cohort_loss(
            peers,
            self.temperature,
            self.kd_temperature,
            kd_weight=self.kd_weight,
            kl_reduction=self.kl_reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={_shown(self.temperature)}, kd_temperature={_shown(self.kd_temperature)}, "
            f"kd_weight={self.kd_weight}, kl_reduction={self.kl_reduction!r}, backend={self.backend!r}"
        )


class SimSiamLoss(nn.Module):
    """Symmetric negative cosine of SimSiam; see ``functional.simsiam`` for dtypes and errors."""

    def forward(self, z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
        """Projections z_a, z_b of both views, held constant, and predictions p_a, p_b, all [N, D], to a 0-d tensor."""
        return functional.simsiam(z_a, z_b, p_a, p_b)


def _set_temperature(module: nn.Module, name: str, value: float | Tensor | None) -> None:
    """Check and keep a temperature; a tensor moves with the module, as the parameter it is or as a buffer."""
    if value is not None:
        value = validation.check_temperature(name, value, value.device if isinstance(value, Tensor) else None)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if value.requires_grad:
            raise ValueError(
                f"{name} must be a number, an nn.Parameter (then it is learnt) or a tensor without gradient, "
                f"got {validation.describe(value)} that requires a gradient: wrap it in nn.Parameter"
            )
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def _shown(value: float | Tensor | None) -> str:
    return "learnable" if isinstance(value, Tensor) and value.requires_grad else str(value)

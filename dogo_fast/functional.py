"""The losses as functions: check the arguments, choose a backend, call its operator.

Every loss takes ``backend``: ``"triton"`` (the fused kernels; a GPU, or a CPU under Triton's interpreter), ``"cpp"``
(the fused kernels of csrc/ on the CPU, compiled on first use where they were not when the package was installed),
``"reference"`` (the dense formulas of ``dogo_fast.reference``, any device, at least float32 inside) or ``"auto"``: what
the environment variable ``DOGO_FAST_BACKEND`` names, else Triton for float32, bfloat16 and float16 tensors on a GPU,
C++ on the CPU, and the reference where neither is to be had. Losses come back in float32 (float64 for float64 inputs).

NaN or Inf anywhere in an input gives a NaN loss. A zero row is treated as ``F.normalize`` does (ε = 1e-12).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from dogo_fast import ops, reference, validation
from dogo_fast.ops.backend import AUTOCAST_DEVICES, BACKENDS, resolve_backend
from dogo_fast.output import CohortLossOutput, DoGoLossOutput

__all__ = [
    "BACKENDS",
    "CohortLossOutput",
    "DoGoLossOutput",
    "cohort_loss",
    "dogo_loss",
    "nt_xent",
    "similarity_kl",
    "simsiam",
]

NT_XENT_REDUCTIONS = ("mean", "sum", "none")
KL_REDUCTIONS = ("batchmean", "mean", "sum", "none")
DOGO_KL_REDUCTIONS = ("batchmean", "mean", "sum")

T = TypeVar("T")


def nt_xent(
    a: Tensor, b: Tensor, temperature: float | Tensor = 0.5, *, reduction: str = "mean", backend: str = "auto"
) -> Tensor:
    """NT-Xent (normalised temperature-scaled cross-entropy) of two views; SimCLR, equation 1.

    Args:
        a, b: raw (not normalised) projections of the two views, [N ≥ 2, D], float32, bfloat16, float16 or float64.
        temperature: τ > 0, a number or a 0-d tensor (which gets a gradient when it requires one).
        reduction: ``"mean"`` or ``"sum"`` over the 2N rows, or ``"none"``: [2N], the rows of a, then those of b.
        backend: see the module.

    Returns:
        a 0-d tensor, or [2N], in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument that is not a tensor or number, or of a dtype that is not allowed.
        ValueError: shapes or devices that do not match, N < 2, a temperature that is not finite and above 0, an
            unknown reduction or backend.
    """
    a, b = validation.check_views(("a", "b"), a, b)
    temperature = validation.check_temperature("temperature", temperature, a.device)
    validation.check_choice("reduction", reduction, NT_XENT_REDUCTIONS)
    backend = resolve_backend(backend, (a, b))
    if backend == "reference":
        return _exactly(reference.nt_xent)(*_wide(a, b), _wide_number(temperature), reduction=reduction)
    return ops.NT_XENT(((a, b),), (temperature,), (reduction,), backend)[0]


def similarity_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    temperature: float | Tensor = 0.1,
    *,
    teacher_temperature: float | Tensor | None = None,
    reduction: str = "batchmean",
    detach_teacher: bool = True,
    backend: str = "auto",
) -> Tensor:
    """KL(teacher ‖ student) of the softmax over similarities; DoGo, equation 3.

    Row i of a pair's distribution is the softmax over its keys of the cosines with query i, divided by a temperature.

    Args:
        student, teacher: pairs (queries [R, D], keys [C, D]) of raw vectors, of dtypes as in ``nt_xent``; R and C must
            agree between the two, D and the dtype need not.
        temperature: T > 0 of the student, a number or a 0-d tensor.
        teacher_temperature: T of the teacher; None means ``temperature``.
        reduction: ``"batchmean"`` divides the sum by R, ``"mean"`` by R·C as ``F.kl_div`` does, ``"sum"``, or
            ``"none"``: [R].
        detach_teacher: hold the teacher's distribution constant (its queries, keys and temperature get no gradient).
        backend: see the module.

    Returns:
        a 0-d tensor, or [R], in nats, float32 (float64 where an input is).

    Raises:
        TypeError, ValueError: as ``nt_xent``; also numbers of queries or keys that differ between the two.
    """
    student = validation.check_queries_and_keys("student", student)
    teacher = validation.check_queries_and_keys("teacher", teacher)
    for part, ours, theirs in zip(("queries", "keys"), student, teacher, strict=True):
        if ours.shape[0] != theirs.shape[0]:
            raise ValueError(
                f"student and teacher must have the same number of {part}, got {ours.shape[0]} and {theirs.shape[0]}"
            )
    device = student[0].device
    validation.check_same_device(("student", "teacher"), student[0], teacher[0])
    temperature = validation.check_temperature("temperature", temperature, device)
    if teacher_temperature is not None:
        teacher_temperature = validation.check_temperature("teacher_temperature", teacher_temperature, device)
    validation.check_choice("reduction", reduction, KL_REDUCTIONS)
    validation.check_flag("detach_teacher", detach_teacher)
    backend = resolve_backend(backend, (*student, *teacher))
    if backend == "reference":
        queries, keys, teacher_queries, teacher_keys = _wide(*student, *teacher)
        return _exactly(reference.similarity_kl)(
            (queries, keys),
            (teacher_queries, teacher_keys),
            _wide_number(temperature),
            teacher_temperature=None if teacher_temperature is None else _wide_number(teacher_temperature),
            reduction=reduction,
            detach_teacher=detach_teacher,
        )
    temperatures = (temperature, temperature if teacher_temperature is None else teacher_temperature)
    return ops.SIMILARITY_KL((student, teacher), temperatures, (reduction, detach_teacher), backend)[0]


def dogo_loss(
    peer_1: tuple[Tensor, Tensor],
    peer_2: tuple[Tensor, Tensor],
    temperature: float | Tensor = 0.5,
    kd_temperature: float | Tensor = 0.1,
    *,
    kd_weight: float | Sequence[float] = 1.0,
    kl_reduction: str = "batchmean",
    backend: str = "auto",
) -> DoGoLossOutput:
    """The whole loss of two peers that learn together; DoGo, equations 1 to 4.

    ``loss_p = nt_xent_p + w_p · kl_p`` and ``loss = loss_1 + loss_2``, where ``kl_1 = KL(P₂ ‖ P₁)`` holds P₂ constant
    and ``kl_2`` mirrors it; P_p is peer p's softmax over the cosines between its view a (rows) and its view b.

    Args:
        peer_1, peer_2: pairs (a, b) of raw projections [N ≥ 2, D_p], of dtypes as in ``nt_xent``; N must agree, D and
            the dtype need not.
        temperature: τ > 0 of NT-Xent, a number or a 0-d tensor.
        kd_temperature: T > 0 of the similarity distributions, a number or a 0-d tensor.
        kd_weight: w, one number or one per peer.
        kl_reduction: ``"batchmean"`` divides the sum over rows by N, ``"mean"`` by N² (the authors' code), ``"sum"``.
        backend: see the module.

    Returns:
        ``DoGoLossOutput(loss, loss_1, loss_2, nt_xent_1, nt_xent_2, kl_1, kl_2)``, 0-d tensors in nats, all
        differentiable.

    Raises:
        TypeError, ValueError: as ``nt_xent``; also batch sizes that differ between the peers.
    """
    pairs = _check_peers((peer_1, peer_2))
    (a_1, b_1), (a_2, b_2) = pairs
    temperature = validation.check_temperature("temperature", temperature, a_1.device)
    kd_temperature = validation.check_temperature("kd_temperature", kd_temperature, a_1.device)
    weights = validation.check_weights("kd_weight", kd_weight)
    validation.check_choice("kl_reduction", kl_reduction, DOGO_KL_REDUCTIONS)
    backend = resolve_backend(backend, (a_1, b_1, a_2, b_2))
    if backend == "reference":
        a_1, b_1, a_2, b_2 = _wide(a_1, b_1, a_2, b_2)
        return _exactly(reference.dogo_loss)(
            (a_1, b_1),
            (a_2, b_2),
            _wide_number(temperature),
            _wide_number(kd_temperature),
            kd_weight=weights,
            kl_reduction=kl_reduction,
        )
    settings = (*weights, kl_reduction)
    return DoGoLossOutput(*ops.DOGO_LOSS(tuple(pairs), (temperature, kd_temperature), settings, backend))


def _check_peers(peers: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The views of each, of one batch size on one device."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for number, peer in enumerate(peers, 1):
        name = f"peer_{number}"
        a, b = validation.check_views((f"{name} a", f"{name} b"), *validation.check_pair(name, peer, "(a, b)"))
        if pairs and a.shape[0] != pairs[0][0].shape[0]:
            sizes = f"{pairs[0][0].shape[0]} and {a.shape[0]}"
            raise ValueError(f"peer_1 and {name} must have the same batch size N, got {sizes}")
        validation.check_same_device(("peer_1", name), pairs[0][0] if pairs else a, a)
        pairs.append((a, b))
    return pairs


def cohort_loss(
    peers: Sequence[tuple[Tensor, Tensor]],
    temperature: float | Tensor = 0.5,
    kd_temperature: float | Tensor = 0.1,
    *,
    kd_weight: float | Sequence[float] = 1.0,
    kl_reduction: str = "batchmean",
    backend: str = "auto",
) -> CohortLossOutput:
    """The loss of K ≥ 2 peers that learn together, each distilled from all others; of two, ``dogo_loss`` to the bit.

    ``loss_p = nt_xent_p + w_p · kl_p`` with ``kl_p = mean over q ≠ p of KL(P_q ‖ P_p)``, P_q held constant, as deep
    mutual learning extends to cohorts (arXiv 1706.00384, section 3.3); ``loss`` is their sum. Peers go through
    ``dogo_loss`` two by two, what is left of the pairs through ``similarity_kl``.

    Args:
        peers: pairs (a, b) of raw projections [N ≥ 2, D_p], as those of ``dogo_loss``.
        temperature, kd_temperature, kl_reduction, backend: as in ``dogo_loss``.
        kd_weight: w, one number or one per peer.

    Returns:
        ``CohortLossOutput(loss, losses, nt_xents, kls)``, in nats, all differentiable.

    Raises:
        TypeError, ValueError: as ``dogo_loss``; also fewer than two peers.
    """
    if isinstance(peers, Tensor) or not isinstance(peers, Sequence) or len(peers) < 2:
        got = len(peers) if isinstance(peers, Sequence) else type(peers).__name__
        raise ValueError(f"peers must be two pairs (a, b) or more, got {got}")
    peers = _check_peers(peers)
    count = len(peers)
    weights = validation.check_weights("kd_weight", kd_weight, count)
    # of a pair, the loss has both weights already; of more, parts alone are used
    own = (weights[0], weights[1]) if count == 2 else (1.0, 1.0)
    couples = [
        dogo_loss(
            peers[first],
            peers[first + 1],
            temperature,
            kd_temperature,
            kd_weight=own,
            kl_reduction=kl_reduction,
            backend=backend,
        )
        for first in range(0, count - 1, 2)
    ]
    nt_xents = [value for couple in couples for value in (couple.nt_xent_1, couple.nt_xent_2)]
    if count == 2:
        (pair,) = couples
        return CohortLossOutput(pair.loss, (pair.loss_1, pair.loss_2), tuple(nt_xents), (pair.kl_1, pair.kl_2))
    if count % 2:
        nt_xents.append(nt_xent(*peers[-1], temperature, backend=backend))

    def kl(student: int, teacher: int) -> Tensor:
        if student // 2 == teacher // 2:
            couple = couples[student // 2]
            return couple.kl_2 if student % 2 else couple.kl_1
        return similarity_kl(peers[student], peers[teacher], kd_temperature, reduction=kl_reduction, backend=backend)

    kls = tuple(
        torch.stack([kl(student, teacher) for teacher in range(count) if teacher != student]).mean()
        for student in range(count)
    )
    losses = tuple(mine + weight * other for mine, weight, other in zip(nt_xents, weights, kls, strict=True))
    return CohortLossOutput(torch.stack(losses).sum(), losses, tuple(nt_xents), kls)


def simsiam(z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
    """Symmetric negative cosine of SimSiam (equation 4): −½ [⟨sg(ẑ_a), p̂_b⟩ + ⟨sg(ẑ_b), p̂_a⟩], mean over rows.

    Args:
        z_a, z_b: projections of the two views, [N, D], float32, bfloat16, float16 or float64; held constant.
        p_a, p_b: predictions of the two views, of the same shape and dtype.

    Returns:
        a 0-d tensor in [−1, 1], float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument that is not a floating-point tensor [N, D], or shapes, dtypes or devices
            that differ.
    """
    z_a = validation.check_rows("z_a", z_a)
    for name, value in (("z_b", z_b), ("p_a", p_a), ("p_b", p_b)):
        other = validation.check_rows(name, value)
        if other.shape != z_a.shape:
            raise ValueError(f"{name} must have the shape of z_a, {tuple(z_a.shape)}, got {tuple(other.shape)}")
        validation.check_same_kind(("z_a", name), z_a, other)
    return _exactly(reference.simsiam)(*_wide(z_a, z_b, p_a, p_b))


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in one dtype, the widest present and at least float32, in which the dense formulas are trustworthy."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(dtype) for t in tensors)


def _wide_number(temperature: float | Tensor) -> float | Tensor:
    """The temperature, NaN where it is not finite and above 0 (numbers were checked already)."""
    if isinstance(temperature, Tensor):
        return torch.where((temperature > 0) & (temperature < torch.inf), temperature, torch.nan)
    return temperature


def _exactly(function: Callable[..., T]) -> Callable[..., T]:
    """The function outside autocast, which would round the similarities to 16 bits."""

    def outside(*args, **kwargs):  # type: ignore[no-untyped-def]  # torch.compile fails on guards of annotations here
        kind = _device_type(args)
        if kind not in AUTOCAST_DEVICES:
            return function(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return outside


def _device_type(arguments: Sequence[object]) -> str:
    """Of the first tensor among the arguments and the pairs among them."""
    first = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
    assert isinstance(first, Tensor)
    return first.device.type

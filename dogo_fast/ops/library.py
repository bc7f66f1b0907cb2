"""The losses, each described once; core.py makes their operators of that."""

from typing import Any

from dogo_fast.ops.core import Loss, register
from dogo_fast.ops.problem import VALUES, Temperature


def _nt_xent_terms(N: int, _: int, temperature: Temperature, reduction: str) -> dict[str, Any]:
    return {
        "rows_b": N,
        "nt": True,
        "temperature": temperature,
        "nt_scale": 1.0 / (2 * N) if reduction == "mean" else 1.0,
        "second": "none",
        "value_rows": 2 * N if reduction == "none" else None,
    }


def _similarity_kl_terms(
    R: int, C: int, student: Temperature, teacher: Temperature, reduction: str, detach_teacher: bool
) -> dict[str, Any]:
    return {
        "kl": True,
        "kd_temperatures": (student, teacher),
        "kl_scale": _kl_scale(reduction, R, C),
        "kd_weights": (1.0, 1.0),
        "second": "none" if detach_teacher else "teacher",
        "value_rows": R if reduction == "none" else None,
    }


def _dogo_loss_terms(
    N: int, _: int, temperature: Temperature, kd: Temperature, weight_1: float, weight_2: float, kl_reduction: str
) -> dict[str, Any]:
    return {
        "rows_b": N,
        "nt": True,
        "kl": True,
        "temperature": temperature,
        "kd_temperatures": (kd, kd),
        "nt_scale": 1.0 / (2 * N),
        "kl_scale": _kl_scale(kl_reduction, N, N),
        "kd_weights": (weight_1, weight_2),
    }


def _kl_scale(reduction: str, R: int, C: int) -> float:
    return {"batchmean": 1.0 / R, "mean": 1.0 / (R * C), "sum": 1.0, "none": 1.0}[reduction]


NT_XENT = register(
    Loss(
        "nt_xent",
        pairs=(("a", "b"),),
        temperatures={"temperature": 0},
        settings=("str reduction",),
        values=("nt_xent_1",),
        saved=("rows", "inverse_norm", "nt"),
        terms=_nt_xent_terms,
    )
)
SIMILARITY_KL = register(
    Loss(
        "similarity_kl",
        pairs=(("queries", "keys"), ("teacher_queries", "teacher_keys")),
        temperatures={"temperature": 1, "teacher_temperature": 2},
        settings=("str reduction", "bool detach_teacher"),
        values=("kl_1",),
        saved=("rows", "teacher_rows", "inverse_norm", "kl"),
        terms=_similarity_kl_terms,
    )
)
DOGO_LOSS = register(
    Loss(
        "dogo_loss",
        pairs=(("a_1", "b_1"), ("a_2", "b_2")),
        temperatures={"temperature": 0, "kd_temperature": 1},
        settings=("float kd_weight_1", "float kd_weight_2", "str kl_reduction"),
        values=VALUES,
        saved=("rows_1", "rows_2", "inverse_norm", "nt", "kl"),
        terms=_dogo_loss_terms,
    )
)
LOSSES = {loss.name: loss for loss in (NT_XENT, SIMILARITY_KL, DOGO_LOSS)}

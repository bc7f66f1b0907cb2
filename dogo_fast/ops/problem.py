"""One loss as every backend is given it, and what passes between the forward and the backward operators."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class Temperature(NamedTuple):
    """A temperature as the operators carry it: the tensor if there is one, else the number."""

    tensor: Tensor | None
    number: float


ABSENT = Temperature(None, 1.0)


class Saved(NamedTuple):
    """What the backward pass needs: normalised rows of each peer and statistics of the rows.

    kernels/dogo_forward.py and csrc/dogo_forward.cpp have their layouts.
    """

    z_1: Tensor
    z_2: Tensor
    inverse_norm: Tensor
    nt: Tensor
    kl: Tensor


class Gradients(NamedTuple):
    """Gradients of the inputs (view a and b of each peer that gets one) and of the temperatures that are tensors."""

    views: tuple[Tensor, ...]
    temperature: Tensor | None
    kd_temperatures: tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Problem:
    """One loss: its sizes, dtypes, temperatures and switches. Backends add what they derive from it.

    ``widths`` and ``dtypes`` (of the inputs) have one entry a peer; ``product`` is the dtype in which float32 rows may
    be multiplied (see library.py).
    """

    rows_a: int
    rows_b: int
    widths: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    product: torch.dtype
    nt: bool
    kl: bool
    temperature: Temperature = ABSENT
    kd_temperatures: tuple[Temperature, Temperature] = (ABSENT, ABSENT)
    nt_scale: float = 1.0
    kl_scale: float = 1.0
    kd_weights: tuple[float, float] = (0.0, 0.0)

    @property
    def peers(self) -> int:
        return len(self.widths)

    @property
    def value_dtype(self) -> torch.dtype:
        """Of losses, statistics and gradients of temperatures."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32


def allocate_gradients(problem: Problem, device: torch.device, peer_2: str, temperatures_learn: bool) -> Gradients:
    """Uninitialised gradients. A kd temperature that both peers share has one gradient, the first.

    ``peer_2``: "student", "teacher" or "none", what the second peer is differentiated as.
    """
    owned = 1 if peer_2 == "none" else 2
    views = tuple(
        torch.empty(rows, problem.widths[peer], dtype=problem.dtypes[peer], device=device)
        for peer in range(owned)
        for rows in (problem.rows_a, problem.rows_b)
    )
    wanted = (problem.nt, problem.kl, problem.kl and peer_2 == "teacher")
    scalars = [
        torch.empty((), dtype=problem.value_dtype, device=device) if temperatures_learn and asked else None
        for asked in wanted
    ]
    return Gradients(views, scalars[0], (scalars[1], scalars[2]))

"""One loss as every backend is given it, and what passes between the forward and the backward operators."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dogo_fast.output import DoGoLossOutput

Pair = tuple[Tensor, Tensor]

VALUES = DoGoLossOutput._fields
"""What the statistics of rows can be made into; a loss has one of them, or all."""


class Temperature(NamedTuple):
    """A temperature as the operators carry it: the tensor if there is one, else the number."""

    tensor: Tensor | None
    number: float


ABSENT = Temperature(None, 1.0)


class Gradients(NamedTuple):
    """Gradients of the inputs, in their order, and of the temperatures that are tensors, in the loss's order; None
    where none was asked for."""

    views: tuple[Tensor, ...]
    temperatures: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Inputs:
    """What any loss is computed from: pairs of views (or queries and keys), one a peer.

    Args:
        rows_a, rows_b: rows of the first and of the second of every pair.
        widths, dtypes: of each peer.
        product: the dtype in which float32 rows may be multiplied (see core.py).
        value_rows: how many values the loss has, one a row; None: a 0-d value.
    """

    rows_a: int
    rows_b: int
    widths: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    product: torch.dtype
    value_rows: int | None = None

    @property
    def peers(self) -> int:
        return len(self.widths)

    @property
    def value_dtype(self) -> torch.dtype:
        """Of losses, statistics and gradients of temperatures."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32


@dataclass(frozen=True)
class Problem(Inputs):
    """NT-Xent, the similarity KL, or both of two peers. Backends add what they derive from it.

    Args:
        nt, kl: which of the two are there.
        temperature: τ of NT-Xent.
        kd_temperatures: T of each peer's similarity distribution.
        nt_scale, kl_scale: what the sum over rows is multiplied by.
        kd_weights: of each peer's KL in its loss.
        second: what the second peer is differentiated as, "student", "teacher" or "none" (also where there is none).
    """

    nt: bool = False
    kl: bool = False
    temperature: Temperature = ABSENT
    kd_temperatures: tuple[Temperature, Temperature] = (ABSENT, ABSENT)
    nt_scale: float = 1.0
    kl_scale: float = 1.0
    kd_weights: tuple[float, float] = (0.0, 0.0)
    second: str = "student"

    @property
    def temperatures(self) -> tuple[Temperature, ...]:
        """τ, then T of each peer."""
        return (self.temperature, *self.kd_temperatures)

    @property
    def learns(self) -> bool:
        """Whether a temperature may need a gradient."""
        return any(temperature.tensor is not None for temperature in self.temperatures)

    @property
    def owned(self) -> int:
        """Peers that get a gradient."""
        return 1 if self.second == "none" else self.peers


class Saved(NamedTuple):
    """What the backward pass needs: normalised rows of each peer and statistics of the rows.

    kernels/dogo_forward.py and csrc/dogo_forward.cpp have their layouts. ``nt`` and ``kl`` are None where the problem
    has none.
    """

    rows: tuple[Tensor, ...]
    inverse_norm: Tensor
    nt: Tensor | None
    kl: Tensor | None

    def pack(self) -> tuple[Tensor, ...]:
        """As the operators return it."""
        return (*self.rows, self.inverse_norm, *(each for each in (self.nt, self.kl) if each is not None))

    @classmethod
    def unpack(cls, problem: Problem, tensors: tuple[Tensor, ...]) -> "Saved":
        """Of what ``pack`` gave."""
        given = iter(tensors)
        rows = tuple(next(given) for _ in range(problem.peers))
        inverse_norm = next(given)
        return cls(rows, inverse_norm, next(given) if problem.nt else None, next(given) if problem.kl else None)


def allocate_gradients(problem: Problem, device: torch.device) -> Gradients:
    """Uninitialised gradients. A temperature T that both peers share has one gradient, the first."""
    views = tuple(
        torch.empty(rows, problem.widths[peer], dtype=problem.dtypes[peer], device=device)
        for peer in range(problem.owned)
        for rows in (problem.rows_a, problem.rows_b)
    )
    wanted = (problem.nt, problem.kl, problem.kl and problem.second == "teacher")
    temperatures = tuple(
        torch.empty((), dtype=problem.value_dtype, device=device) if problem.learns and asked else None
        for asked in wanted
    )
    return Gradients(views, temperatures)

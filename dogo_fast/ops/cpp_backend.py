"""The C++ kernels of csrc/ on the CPU: sizes, buffers, calls.

Forward: statistics, values. Backward: gradients. A call does a tenth of a second's work or so and says where to go on,
so that Python can be interrupted in between; all but large problems are one call a pass.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dogo_fast.ops import extension, problem
from dogo_fast.ops.problem import VALUES, Gradients, Pair, Saved, Temperature, allocate_gradients

__all__ = ["Problem", "allocate_gradients", "allocate_saved", "backward", "forward"]

# csrc/geometry.h has the same numbers.
LARGEST_BLOCK = 128
SMALLEST_BLOCK = 32
BLOCK_MULTIPLE = 16
SPAN_ROWS = 2048
"""Rows in a span at width 128, so that a step of the schedule takes at most some tenths of a second."""


def padded_rows(rows: int) -> int:
    """Rows of a view in its buffer, zeros behind included: as many as the largest block that the view may be cut into.

    ``rows`` may be symbolic: torch's functions keep one graph for all sizes. They take 2 µs, seven times a pass, and
    Python's own 0.4.
    """
    whole = -(-rows // BLOCK_MULTIPLE) * BLOCK_MULTIPLE
    if isinstance(rows, int):
        return rows + min(LARGEST_BLOCK, max(SMALLEST_BLOCK, whole))
    padding: Any = torch.sym_min(LARGEST_BLOCK, torch.sym_max(SMALLEST_BLOCK, whole))
    padded: int = rows + padding
    return padded


@cache
def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: with AMX, and AMD's with AVX512-BF16. Intel's with
    AVX512-BF16 alone do not: half as fast."""
    extension.load()
    return bool(torch.ops.dogo_fast_cpp.fast_bfloat16())


@dataclass(frozen=True)
class Problem(problem.Problem):
    """A loss cut for the C++ kernels."""

    @property
    def products(self) -> tuple[torch.dtype, ...]:
        """The dtype in which each peer's rows are kept and multiplied: never narrower than what was given, unless
        autocast asks; 16-bit products only where they are fast, since float32 ones are more exact."""
        if self.value_dtype == torch.float64:
            return (torch.float64,) * self.peers
        asked = [self.product if dtype == torch.float32 else dtype for dtype in self.dtypes]
        return tuple(
            torch.bfloat16 if dtype == torch.bfloat16 and fast_bfloat16() else torch.float32 for dtype in asked
        )

    @property
    def pad_a(self) -> int:
        return padded_rows(self.rows_a)

    @property
    def pad(self) -> int:
        return self.pad_a + padded_rows(self.rows_b)

    def width(self, peer: int) -> int:
        """Columns of a row as it is kept: an even number for 16-bit products, which take pairs."""
        width = self.widths[peer]
        return width + width % 2 if self.products[peer] == torch.bfloat16 else width

    def geometry(self) -> list[int]:
        """How rows are cut into blocks and spans, for as many threads as torch has; see csrc/geometry.h."""
        threads = torch.get_num_threads()
        # In a tournament two spans meet in every task; in a rectangle a span of queries meets one of keys.
        spans = 2 * threads if self.nt else threads
        longest = max(LARGEST_BLOCK, int(SPAN_ROWS * math.sqrt(128 / max(self.widths))))
        sizes = []
        for rows in (self.rows_a, self.rows_b):
            count = spans * math.ceil(rows / (spans * longest))
            span_rows = math.ceil(rows / count)
            span = math.ceil(span_rows / LARGEST_BLOCK)
            block = math.ceil(span_rows / span / BLOCK_MULTIPLE) * BLOCK_MULTIPLE
            sizes += [rows, max(block, SMALLEST_BLOCK), span]
        return [*sizes, threads]

    def temperature_values(self) -> list[float]:
        """τ and T of each peer; NaN for a tensor that is not finite and above 0."""
        return [_value(each) for each in self.temperatures]


def _value(temperature: Temperature) -> float:
    if temperature.tensor is None:
        return temperature.number
    value = float(temperature.tensor)
    return value if 0 < value < math.inf else math.nan


def allocate_saved(problem: Problem, device: torch.device) -> tuple[Tensor, ...]:
    """Uninitialised buffers; the shapes depend on the problem's sizes and dtypes only."""
    rows = tuple(
        torch.empty(problem.pad, problem.width(peer), dtype=problem.products[peer], device=device)
        for peer in range(problem.peers)
    )
    inverse_norm = torch.empty(problem.peers, problem.pad, dtype=problem.value_dtype, device=device)
    nt = inverse_norm.new_empty(problem.peers, 3, problem.pad) if problem.nt else None
    kl = inverse_norm.new_empty(2, 3, problem.pad_a) if problem.kl else None
    return Saved(rows, inverse_norm, nt, kl).pack()


def _statistics(saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """As the C++ operators take them: an empty tensor for those that are not there."""
    absent = saved.inverse_norm.new_empty(0, 3, 0)
    return saved.inverse_norm, absent if saved.nt is None else saved.nt, absent if saved.kl is None else saved.kl


def _walk(operator: Any, *arguments: Any) -> None:
    """Call an operator until its last step is done."""
    step = 0
    while step >= 0:
        step = operator(*arguments, step)


def forward(
    problem: Problem, pairs: tuple[Pair, ...], values: Mapping[str, Tensor], rows: Tensor | None
) -> tuple[Tensor, ...]:
    """As core.Backend says."""
    extension.load()
    operators = torch.ops.dogo_fast_cpp
    tensors = allocate_saved(problem, pairs[0][0].device)
    saved = Saved.unpack(problem, tensors)
    panels = [torch.empty_like(each).unsqueeze(0) for each in saved.rows]
    views = [view for pair in pairs for view in pair]
    geometry, temperatures = problem.geometry(), problem.temperature_values()
    statistics = _statistics(saved)
    _walk(operators.statistics, views, saved.rows, *statistics, panels, geometry, temperatures)
    wanted = [values[name] for name in VALUES if name in values]
    operators.values(
        *statistics, wanted, rows, geometry, temperatures, problem.nt_scale, problem.kl_scale, problem.kd_weights
    )
    return tensors


def backward(
    problem: Problem, tensors: tuple[Tensor, ...], upstream: Mapping[str, Tensor | None], factor: Tensor | None
) -> Gradients:
    """As core.Backend says."""
    extension.load()
    saved = Saved.unpack(problem, tensors)
    gradients = allocate_gradients(problem, saved.inverse_norm.device)
    dtype = problem.value_dtype
    layouts = [3 if each.dtype == torch.bfloat16 else 1 for each in saved.rows]
    panels = [each.new_empty(count, *each.shape) for count, each in zip(layouts, saved.rows, strict=True)]
    sums, key_sums = ([torch.empty_like(each, dtype=dtype) for each in saved.rows[: problem.owned]] for _ in range(2))
    pulls = torch.empty_like(saved.inverse_norm)
    inner = saved.inverse_norm.new_empty(problem.owned, 2, problem.pad) if problem.learns else None
    temperatures = problem.temperature_values()
    _walk(
        torch.ops.dogo_fast_cpp.gradients,
        saved.rows, *_statistics(saved), factor, panels, sums, key_sums, pulls, inner, gradients.views,
        problem.geometry(), temperatures, *_coefficients(problem, temperatures, upstream, factor),
        problem.second == "teacher",
    )  # fmt: skip
    if inner is not None:
        _write_temperature_gradients(problem, gradients, inner, temperatures)
    return gradients


def _coefficients(
    problem: Problem, temperatures: list[float], upstream: Mapping[str, Tensor | None], factor: Tensor | None
) -> tuple[list[float], list[float]]:
    """What multiplies every weight of NT-Xent and of the KL, of each peer: the upstream gradient times the reduction's
    scale over the temperature. Rows have their own upstream gradients."""
    given = {name: float(gradient) for name, gradient in upstream.items() if gradient is not None}
    loss, loss_1, loss_2, nt_xent_1, nt_xent_2, kl_1, kl_2 = (given.get(name, 0.0) for name in VALUES)
    nt, kl = [loss + loss_1 + nt_xent_1, loss + loss_2 + nt_xent_2], [0.0, 0.0]
    for peer, (of_peer, own) in enumerate(((loss_1, kl_1), (loss_2, kl_2))):
        kl[peer] = problem.kd_weights[peer] * (loss + of_peer) + own
    if factor is not None:
        nt, kl = [1.0, 1.0], [1.0, 1.0]
    if problem.second == "teacher":
        kl[1] = kl[0]  # the one KL there is, seen from its other side
    tau, *kd_temperatures = temperatures
    return (
        [problem.nt_scale * each / tau for each in nt],
        [problem.kl_scale * each / temperature for each, temperature in zip(kl, kd_temperatures, strict=True)],
    )


def _write_temperature_gradients(
    problem: Problem, gradients: Gradients, inner: Tensor, temperatures: list[float]
) -> None:
    """From the rows' Σ_j w_ij s_ij and Σ_j w_ij (c_ij − …); see csrc/dogo_backward.cpp."""
    sums = inner.sum(dim=2, dtype=torch.float64)  # of each owned peer: NT-Xent, KL
    tau, own, teacher = gradients.temperatures
    if tau is not None:
        tau.copy_(-0.5 * sums[:, 0].sum() / temperatures[0])
    if teacher is not None:
        teacher.copy_(-sums[1, 1] / temperatures[2])
        sums = sums[:1]
    if own is not None:
        own.copy_(-sums[:, 1].sum() / temperatures[1])

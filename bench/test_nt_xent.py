"""NT-Xent alone, forward, backward and both, in turns with what it is measured against."""

from collections.abc import Iterable
from typing import Any

from .grid import Case, loss_cases
from .losses import bench_loss

LOSS = "nt_xent"


def cases(grid: str) -> Iterable[Case]:
    return loss_cases(grid, LOSS)


def test_nt_xent(benchmark: Any, case: Case, grid: str, rates: dict[str, float]) -> None:
    bench_loss(benchmark, LOSS, case, grid, rates)

"""The whole DoGo loss, forward, backward and both, in turns with what it is measured against."""

from collections.abc import Iterable
from typing import Any

from .grid import Case, loss_cases
from .losses import bench_loss

LOSS = "dogo_loss"


def cases(grid: str) -> Iterable[Case]:
    return loss_cases(grid, LOSS)


def test_dogo_loss(benchmark: Any, case: Case, grid: str, rates: dict[str, float]) -> None:
    bench_loss(benchmark, LOSS, case, grid, rates)

"""Counted work: of the kernels against what the interpreter really multiplies and exponentiates, of the losses against
recorded figures and a count by hand."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from dogo_fast.bench.work import Shape, Work, bound, least_seconds, needed, tile_loops
from dogo_fast.functional import dogo_loss, nt_xent, similarity_kl
from dogo_fast.kernels.configurations import Configuration, Tile
from dogo_fast.ops import launches, tile_tables, triton_backend
from dogo_fast.ops.backend import interpreting

CASES = {
    "dogo_loss": lambda views: dogo_loss(tuple(views[:2]), tuple(views[2:]), backend="triton").loss,
    "nt_xent": lambda views: nt_xent(*views[:2], backend="triton"),
    "similarity_kl": lambda views: similarity_kl(tuple(views[:2]), tuple(views[2:]), backend="triton"),
}


def done(kernel: str, values: Mapping[str, Any]) -> Work:
    """FLOP and exponentials that a launch of a tiled kernel runs, by its loops over tiles."""
    elements = [
        (loop.tiles * (loop.rows or values["BLOCK_M"]) * values["BLOCK_N"], loop) for loop in tile_loops(kernel, values)
    ]
    flop = sum(2 * number * sum(loop.widths) for number, loop in elements)
    return Work(flop, sum(number * loop.exponentials for number, loop in elements))


@pytest.mark.skipif(not interpreting(), reason="counts what Triton's interpreter runs")
@pytest.mark.parametrize("loss", CASES)
@pytest.mark.parametrize(("N", "widths"), [(70, (24, 40)), (33, (16, 300)), (290, (24, 32))])
@pytest.mark.parametrize("tile", [Tile(32, 32, 2, 2), Tile(32, 16, 2, 2, 128)], ids=["by rows", "by squares"])
def test_what_the_kernels_do_is_what_the_interpreter_runs(
    loss: str, N: int, widths: tuple[int, int], tile: Tile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    counted: Counter[str] = Counter()
    launched: dict[str, tuple[Work, Work]] = {}
    dot, exp2, run = InterpreterBuilder.create_dot, InterpreterBuilder.create_exp2, launches.run

    def counting_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        counted["flop"] += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(self, a, b, *rest)

    def counting_exp2(self: Any, x: Any) -> Any:
        counted["exponentials"] += x.data.size
        return exp2(self, x)

    def counting_run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **switches: Any) -> None:
        counted.clear()
        run(kernel, grid, *arguments, **switches)
        values = launches.Launch(kernel, grid, arguments, switches).values
        if "BLOCK_M" in values and "PRECISION" in values:
            real = Work(counted["flop"], counted["exponentials"])
            launched[kernel.__name__] = (done(kernel.__name__, values), real)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting_dot)
    monkeypatch.setattr(InterpreterBuilder, "create_exp2", counting_exp2)
    monkeypatch.setattr(triton_backend, "run", counting_run)
    views = [torch.randn(N, widths[i // 2], requires_grad=True) for i in range(4)]
    with tile_tables.forced(Configuration(tile, tile)):
        CASES[loss](views).backward()
    assert set(launched) == {"statistics_kernel", "gradient_kernel"}
    for counts, real in launched.values():
        assert counts == real and real.flop > 0 and real.exponentials > 0


def test_other_kernels_have_no_tiles() -> None:
    with pytest.raises(ValueError, match="got normalize_kernel"):
        tile_loops("normalize_kernel", {})


def test_needed_work_by_hand() -> None:
    """N = 3: 15 distinct pairs of 6 rows and their 6 squares are taken as 2N² = 18."""
    assert needed(Shape("nt_xent", 3, 5, 2), ("forward",)) == Work(2 * 18 * 5, 18, 6 * 5 * 2, 0)
    assert needed(Shape("nt_xent", 3, 5, 2), ("backward",)) == Work(2 * 18 * 5 + 2 * 36 * 5, 18, 60, 60)
    kl = Shape("similarity_kl", 3, 5, 4)
    assert needed(kl, ("forward",)) == Work(2 * 9 * (5 + 5), 18, 6 * 10 * 4, 0)
    assert needed(kl, ("backward",)) == Work(2 * 9 * 10 + 2 * 18 * 5, 18, 6 * 10 * 4, 6 * 5 * 4)
    both = Shape("similarity_kl", 3, 5, 4, teacher_learns=True)
    assert needed(both, ("backward",)) == Work(2 * 9 * 10 + 2 * 18 * 10, 18, 6 * 10 * 4, 6 * 10 * 4)


def test_kernels_do_more_than_is_needed() -> None:
    """By squares, forward the blocks on the diagonal are whole; backward 16 products for 12 a peer, and 12 exponentials
    for 6. By rows whole squares forward, 2 of 1; backward 20 products for 12, and 16 exponentials."""
    from dogo_fast.ops import compiling

    case = compiling.KernelCase("dogo_loss", "bfloat16", 128, 4096, "static")
    diagonal = 256 / 4096 / 2  # of each of two squares that are halved
    shape = Shape("dogo_loss", 4096, 128, 2)
    for target, kernel, one, products, exponentials in (
        ("sm_90", "statistics_kernel", "forward", 1 + diagonal, 1 + 4 * diagonal / 6),
        ("sm_90", "gradient_kernel", "backward", 16 / 12, 12 / 6),
        ("sm_80", "statistics_kernel", "forward", 2.0, 10 / 6),
        ("sm_80", "gradient_kernel", "backward", 20 / 12, 16 / 6),
    ):
        (values,) = (each.values for each in compiling.launches(case, target) if each.name == kernel)
        real, least = done(kernel, values), needed(shape, (one,))
        found = (real.flop / least.flop, real.exponentials / least.exponentials)
        assert found == pytest.approx((products, exponentials), rel=1e-12)


def test_bound_where_products_and_exponentials_take_turns() -> None:
    """On a CPU: of the whole loss 2 (4 + 4 + 8) N² D FLOP and 2 · 2 · 3 N² exponentials."""
    for N in (256, 4096):
        shape = Shape("dogo_loss", N, 128)
        work = needed(shape)
        assert (work.flop, work.exponentials) == (32 * N**2 * 128, 12 * N**2)
        rates = {"gemm": 4e11, "exp2": 1e10, "copy": 1e12}
        least = least_seconds(bound(shape, rates), overlap=False)
        assert least == pytest.approx(work.flop / 4e11 + work.exponentials / 1e10, rel=1e-12)
        parts = [least_seconds(bound(shape, rates, (one,)), overlap=False) for one in ("forward", "backward")]
        assert sum(parts) == pytest.approx(least, rel=1e-12) and parts[0] < parts[1]


def test_bound_where_pipes_overlap() -> None:
    shape = Shape("dogo_loss", 1000, 64, 2)
    rates = {"gemm": 2e12, "exp2": 1e9, "copy": 1e9}
    expected = {"products": 32 * 64e6 / 2e12, "exponentials": 12e6 / 1e9, "memory": 12 * 64e3 * 2 / 1e9}
    least = bound(shape, rates)
    assert least == pytest.approx(expected) and least_seconds(least, overlap=True) == least["exponentials"]
    slow = bound(shape, rates | {"copy": 1e6})
    assert least_seconds(slow, overlap=True) == least_seconds(slow, overlap=False) == slow["memory"]

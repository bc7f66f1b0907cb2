"""Launches of the Triton kernels: sizes, buffers, switches. Nothing here reads a value back from the device.

Forward: normalize, statistics, finalize. Backward: gradient and, where a temperature learns, temperature_gradient.
Three launches and two, whatever N; every other call only allocates.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dogo_fast.kernels import configurations
from dogo_fast.kernels.configurations import padded_rows, padded_width, row_chunk
from dogo_fast.kernels.dogo_backward import (
    Asked,
    Peer,
    Statistics,
    TemperatureGradients,
    Upstream,
    gradient_kernel,
    temperature_gradient_kernel,
)
from dogo_fast.kernels.dogo_forward import finalize_kernel, statistics_kernel
from dogo_fast.kernels.normalize import Pair, normalize_kernel
from dogo_fast.kernels.tiles import Arithmetic, Columns, Losses, Scales, Sizes, Temperatures, Tile, Values
from dogo_fast.ops import problem as problems
from dogo_fast.ops import tile_tables
from dogo_fast.ops.backend import interpreting
from dogo_fast.ops.launches import device_of, run
from dogo_fast.ops.problem import VALUES, Gradients, Saved, Temperature, allocate_gradients

__all__ = ["Problem", "allocate_gradients", "allocate_saved", "backward", "forward"]

STATIC_LIMIT = 60.0
"""2/T up to which the shift of exp((c − m)/T) may be the constant 1: from exp(−60), the smallest that can be, to a loss
scale of 65536 over it and over T, everything stays a normal float32."""

NORMALIZE_ROWS = 16
FINALIZE_ROWS = 1024

PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
"""How float32 products are made, by torch.get_float32_matmul_precision()."""


def is_static(temperature: Temperature) -> bool:
    """Whether the shift of the exponentials may be the constant 1; a tensor's value is unknown, so it may not."""
    return temperature.tensor is None and 2.0 / temperature.number <= STATIC_LIMIT


def argument(temperature: Temperature) -> Tensor | float:
    """As the kernels take it."""
    return temperature.number if temperature.tensor is None else temperature.tensor


@dataclass(frozen=True)
class Problem(problems.Problem):
    """A loss cut for the Triton kernels."""

    @property
    def products(self) -> tuple[torch.dtype, ...]:
        """The dtype in which each peer's rows are multiplied."""
        return tuple(self.product if dtype == torch.float32 else dtype for dtype in self.dtypes)

    @property
    def pad_a(self) -> int:
        rows: int = padded_rows(self.rows_a)  # not int(): it may be symbolic
        return rows

    @property
    def pad_b(self) -> int:
        rows: int = padded_rows(self.rows_b)
        return rows

    @property
    def pad(self) -> int:
        return self.pad_a + self.pad_b

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.rows_a, self.rows_b, self.pad_a, self.pad_b)

    @property
    def temperature_arguments(self) -> Temperatures:
        return Temperatures(*map(argument, self.temperatures))

    @property
    def scales(self) -> Scales:
        return Scales(self.nt_scale, self.kl_scale, *self.kd_weights)

    @property
    def losses(self) -> Losses:
        first, second = self.kd_temperatures
        kl_static = is_static(first) and is_static(second) and first.number == second.number
        return Losses(self.nt, self.kl, is_static(self.temperature), kl_static)

    def columns(self, chunked: bool) -> dict[str, Columns]:
        """Of each peer, by parameter; ``chunked`` as where a gradient is summed or rows are normalised, else as much of
        a row is held as a cosine is summed over at a time, the same in the forward and in the backward."""
        found = []
        for peer, (width, product) in enumerate(zip(self.widths, self.products, strict=True)):
            summed = configurations.product_chunk(width, product.itemsize)
            found.append(Columns(self.padded_width(peer), self.chunk(peer) if chunked else summed, summed))
        return {"columns_1": found[0], "columns_2": found[-1]}

    def chunk(self, peer: int) -> int:
        return int(row_chunk(self.widths[peer], self.products[peer].itemsize))

    def padded_width(self, peer: int) -> int:
        return int(padded_width(self.widths[peer], self.products[peer].itemsize))

    def tiles(self, device: torch.device) -> configurations.Configuration:
        width = max(self.padded_width(peer) for peer in range(self.peers))
        names = [str(product).removeprefix("torch.") for product in self.products]
        dtype = min(names, key=configurations.DTYPES.index)
        return tile_tables.configuration(device_of(device).architecture, dtype, width, max(self.rows_a, self.rows_b))

    def row_blocks(self, tile: configurations.Tile, views: int) -> int:
        return sum(-(-rows // tile.rows) for rows in (self.rows_a, self.rows_b)[:views])

    @property
    def finalize_rows(self) -> int:
        """Rows a step of the one-program kernels, a power of two."""
        return min(FINALIZE_ROWS, 1 << (self.pad - 1).bit_length())


def _arithmetic() -> Arithmetic:
    return Arithmetic(PRECISIONS[torch.get_float32_matmul_precision()], interpreting())


def _floats(*shape: int, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def allocate_saved(problem: Problem, device: torch.device) -> tuple[Tensor, ...]:
    """Uninitialised buffers; the shapes depend on the problem's sizes and dtypes only."""
    rows = tuple(
        torch.empty(problem.pad, problem.padded_width(peer), dtype=problem.products[peer], device=device)
        for peer in range(problem.peers)
    )
    inverse_norm = _floats(problem.peers, problem.pad, device=device)
    nt = _floats(problem.peers, 3, problem.pad, device=device) if problem.nt else None
    kl = _floats(2, 3, problem.pad_a, device=device) if problem.kl else None
    return Saved(rows, inverse_norm, nt, kl).pack()


def forward(
    problem: Problem, pairs: tuple[problems.Pair, ...], values: Mapping[str, Tensor], rows: Tensor | None
) -> tuple[Tensor, ...]:
    """As core.Backend says."""
    device = pairs[0][0].device
    tensors = allocate_saved(problem, device)
    saved = Saved.unpack(problem, tensors)
    _normalize(problem, pairs, saved)
    tile = problem.tiles(device).statistics
    row_blocks = problem.row_blocks(tile, views=2 if problem.nt else 1)
    splits = configurations.column_splits(row_blocks, problem.rows_b, tile, device_of(device).multiprocessors)
    nt_partial = _floats(problem.peers, 3, splits, problem.pad, device=device) if problem.nt else None
    kl_partial = _floats(2, 3, splits, problem.pad_a, device=device) if problem.kl else None
    run(
        statistics_kernel, (row_blocks, splits),
        saved.rows, nt_partial, kl_partial, problem.temperature_arguments, problem.sizes,
        **problem.columns(chunked=False), losses=problem.losses, tile=Tile(tile.rows, tile.keys), SPLITS=splits,
        arithmetic=_arithmetic(), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    run(
        finalize_kernel, (1,),
        nt_partial, kl_partial, saved.nt, saved.kl, rows, Values(*map(values.get, VALUES)),
        problem.temperature_arguments, problem.sizes, problem.scales,
        losses=problem.losses, SPLITS=splits, BLOCK=problem.finalize_rows, num_warps=8,
    )  # fmt: skip
    return tensors


def _normalize(problem: Problem, pairs: tuple[problems.Pair, ...], saved: Saved) -> None:
    # the interpreter's cost is by program, not by row
    block_rows = configurations.ROW_MULTIPLE if interpreting() else NORMALIZE_ROWS
    run(
        normalize_kernel, (problem.pad // block_rows, problem.peers),
        tuple(
            Pair(a, a.stride(0), a.stride(1), b, b.stride(0), b.stride(1), rows, width)
            for (a, b), rows, width in zip(pairs, saved.rows, problem.widths, strict=True)
        ),
        saved.inverse_norm, problem.sizes,
        **problem.columns(chunked=True), BLOCK_ROWS=block_rows, PEERS=problem.peers, INTERPRETED=interpreting(),
        num_warps=4,
    )  # fmt: skip


def backward(
    problem: Problem, tensors: tuple[Tensor, ...], upstream: Mapping[str, Tensor | None], factor: Tensor | None
) -> Gradients:
    """As core.Backend says."""
    saved = Saved.unpack(problem, tensors)
    device = saved.inverse_norm.device
    gradients = allocate_gradients(problem, device)
    owned = problem.owned
    scratch = [
        _floats(problem.pad, problem.padded_width(peer), device=device)
        if problem.padded_width(peer) > problem.chunk(peer)
        else None
        for peer in range(owned)
    ]
    inner = _floats(owned, 2, problem.pad, device=device) if problem.learns else None
    tile = problem.tiles(device).gradient
    views, scratches = (*gradients.views, None, None), (*scratch, None)  # a second peer may be only read
    peers = tuple(
        Peer(rows, views[2 * peer], views[2 * peer + 1], scratches[peer], problem.widths[peer])
        for peer, rows in enumerate(saved.rows)
    )
    run(
        gradient_kernel, (problem.row_blocks(tile, views=2), owned), peers,
        Statistics(saved.inverse_norm, saved.nt, saved.kl, inner), Upstream(Values(*map(upstream.get, VALUES)), factor),
        problem.temperature_arguments, problem.sizes, problem.scales,
        **problem.columns(chunked=True), losses=problem.losses,
        asked=Asked(problem.second, factor is not None, problem.learns), tile=Tile(tile.rows, tile.keys),
        arithmetic=_arithmetic(), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if problem.learns:
        run(
            temperature_gradient_kernel, (1,),
            inner, TemperatureGradients(*gradients.temperatures), problem.temperature_arguments, problem.sizes,
            losses=problem.losses, PEER_2=problem.second, BLOCK=problem.finalize_rows, num_warps=8,
        )  # fmt: skip
    return gradients

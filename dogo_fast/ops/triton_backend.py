"""Launches of the Triton kernels: sizes, buffers, switches. Nothing here reads a value back from the device.

Forward: normalize, statistics, finalize. Backward: gradient and, where the work is divided by squares, finish, or where
a temperature learns, temperature_gradient. Three launches and two, whatever N; every other call only allocates.
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
    finish_kernel,
    gradient_kernel,
    temperature_gradient_kernel,
)
from dogo_fast.kernels.dogo_forward import Finished, finalize_kernel, statistics_kernel
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
FINISH_ROWS = 32
FINALIZE_ROWS = 128
"""A program's; ROW_MULTIPLE is a multiple of it."""
SUMMED_ROWS = 1024
"""A step of the one program that adds up the temperatures' gradients."""

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

    def statistics_tile(self, device: torch.device) -> configurations.Tile:
        """By squares only with NT-Xent, and where every shift is the constant."""
        tile = self.tiles(device).statistics
        static = self.losses.NT_STATIC and (not self.kl or self.losses.KL_STATIC)
        return tile if self.nt and static else tile._replace(own_rows=0)

    def gradient_tile(self, device: torch.device) -> configurations.Tile:
        """By squares only of the whole loss, where every shift is the constant, the peers' rows are alike, and a whole
        one is held at once."""
        tile = self.tiles(device).gradient
        static = self.nt and self.kl and self.losses.NT_STATIC and self.losses.KL_STATIC
        alike = self.products[0] == self.products[-1] and self.padded_width(0) == self.padded_width(self.peers - 1)
        return tile if static and alike and self.padded_width(0) == self.chunk(0) else tile._replace(own_rows=0)

    def row_blocks(self, tile: configurations.Tile, views: int) -> int:
        return sum(-(-rows // tile.rows) for rows in (self.rows_a, self.rows_b)[:views])


def _tile(tile: configurations.Tile) -> Tile:
    return Tile(tile.rows, tile.keys, tile.own_rows, tile.num_warps)


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
    tile = problem.statistics_tile(device)
    if tile.own_rows:
        splits = configurations.square_splits(problem.rows_b, tile)
        squares = configurations.CROSS_GROUPS + 2 * configurations.OWN_GROUPS * problem.peers
        grid: tuple[int, ...] = (squares * splits,)
        numbers = configurations.square_numbers(splits, problem.pad_a, problem.pad_b, tile)
    else:
        row_blocks = problem.row_blocks(tile, views=2 if problem.nt else 1)
        splits = configurations.column_splits(row_blocks, problem.rows_b, tile, device_of(device).multiprocessors)
        grid = (row_blocks, splits)
        numbers = 3 * splits * problem.pad
    kl_numbers = (2 if problem.losses.KL_STATIC else 3) * splits * problem.pad_a
    nt_partial = _floats(problem.peers, numbers, device=device) if problem.nt else None
    kl_partial = _floats(2, kl_numbers, device=device) if problem.kl else None
    programs = (problem.pad if problem.nt else problem.pad_a) // FINALIZE_ROWS
    finished = Finished(_floats(4, programs, device=device), torch.empty((), dtype=torch.int32, device=device))
    switches = {"losses": problem.losses, "tile": _tile(tile), "SPLITS": splits}
    run(
        statistics_kernel, grid,
        saved.rows, nt_partial, kl_partial, finished.p_count, problem.temperature_arguments, problem.sizes,
        **problem.columns(chunked=False), **switches,
        arithmetic=_arithmetic(), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    run(
        finalize_kernel, (programs,),
        (nt_partial, kl_partial), (saved.nt, saved.kl), rows, finished, Values(*map(values.get, VALUES)),
        problem.temperature_arguments, problem.sizes, problem.scales,
        **switches, BLOCK=FINALIZE_ROWS, num_warps=4,
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
    tile = problem.gradient_tile(device)
    scratch = [
        _floats(2 if tile.own_rows else 1, problem.pad, problem.padded_width(peer), device=device)
        if tile.own_rows or problem.padded_width(peer) > problem.chunk(peer)
        else None
        for peer in range(owned)
    ]
    inner = _floats(owned, 2, problem.pad, device=device) if problem.learns else None
    views, scratches = (*gradients.views, None, None), (*scratch, None)  # a second peer may be only read
    peers = tuple(
        Peer(rows, views[2 * peer], views[2 * peer + 1], scratches[peer], problem.widths[peer])
        for peer, rows in enumerate(saved.rows)
    )
    arguments = (
        peers, Statistics(saved.inverse_norm, saved.nt, saved.kl, inner),
        Upstream(Values(*map(upstream.get, VALUES)), factor),
        problem.temperature_arguments, problem.sizes, problem.scales,
    )  # fmt: skip
    switches = problem.columns(chunked=True) | {
        "losses": problem.losses,
        "asked": Asked(problem.second, factor is not None, problem.learns),
        "arithmetic": _arithmetic(),
    }
    grid: tuple[int, ...] = (problem.row_blocks(tile, views=2), owned)
    if tile.own_rows:
        grid = (2 * -(-problem.rows_a // tile.rows) + 4 * -(-problem.rows_a // tile.own_rows),)
    shape = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    run(gradient_kernel, grid, *arguments, **switches, tile=_tile(tile), **shape)
    if tile.own_rows:
        block = configurations.ROW_MULTIPLE if interpreting() else FINISH_ROWS
        run(finish_kernel, (problem.pad // block, owned), *arguments, **switches, BLOCK=block, num_warps=4)
    if problem.learns:
        run(
            temperature_gradient_kernel, (1,),
            inner, TemperatureGradients(*gradients.temperatures), problem.temperature_arguments, problem.sizes,
            losses=problem.losses, PEER_2=problem.second, BLOCK=SUMMED_ROWS, num_warps=8,
        )  # fmt: skip
    return gradients

"""How much work the losses need, and the loops in which the Triton kernels do theirs.

*Needed* is what no way of computing a loss exactly can do without, given that nothing of size N × N is kept: every
cosine is multiplied once a pass (S = Sᵀ: half of each view's own square), its exponentials are taken once a pass and
temperature (where τ/T is a small integer, one could be a power of the other; the kernels take both), and the gradient
multiplies every weight with a row. Inputs are read once a pass, gradients are written once. The few
numbers a row that a forward pass saves are left out.

The kernels of dogo_fast.kernels do more: whole squares, tiles padded to their size, and in the gradient of each peer
the other peer's cosines too. ``tile_loops`` has it, from the arguments of a launch, so that it holds for any shape.

Floating-point operations are those of products: 2 for a multiply-add.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

PASSES = ("forward", "backward")


class Work(NamedTuple):
    """Floating-point operations, exponentials, and bytes that pass through the device's memory."""

    flop: int = 0
    exponentials: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class Shape(NamedTuple):
    """A loss at a size: "nt_xent" of one peer, "similarity_kl" or "dogo_loss" of two.

    N: images, each a row of two views, or a query and a key of the similarity KL; D: columns of every row; itemsize:
    bytes a number of the inputs and gradients; teacher_learns: whether the second peer of the similarity KL gets a
    gradient too.
    """

    loss: str
    N: int
    D: int
    itemsize: int = 4
    teacher_learns: bool = False


def needed(shape: Shape, passes: tuple[str, ...] = PASSES) -> Work:
    """The least work of a loss, see the head of this module.

    Of a peer of NT-Xent, with 2N rows: 2N² distinct cosines a pass (½N² within each view, N² across), so 4N²D; as many
    exponentials; the gradient multiplies all (2N)² weights, 8N²D. Of the similarity KL: N² cosines of both peers a pass
    and as many exponentials each; the gradient multiplies N² weights for the queries and again for the keys. The whole
    loss has both on the same cosines, and adds the weights before it multiplies them.
    """
    peers = range(1 if shape.loss == "nt_xent" else 2)
    parts = [_needed_by_peer(shape, peer, one == "backward") for one in passes for peer in peers]
    return Work(*map(sum, zip(*parts, strict=True)))


def _needed_by_peer(shape: Shape, peer: int, backward: bool) -> Work:
    pairs = shape.N**2
    cosines = pairs if shape.loss == "similarity_kl" else 2 * pairs
    exponentials = {"nt_xent": 2, "similarity_kl": 1, "dogo_loss": 3}[shape.loss] * pairs
    flop, size = 2 * cosines * shape.D, 2 * shape.N * shape.D * shape.itemsize
    constant = shape.loss == "similarity_kl" and peer == 1 and not shape.teacher_learns
    if constant or not backward:
        return Work(flop, exponentials, size)
    weights = (2 if shape.loss == "similarity_kl" else 4) * pairs
    return Work(flop + 2 * weights * shape.D, exponentials, size, size)


def bound(shape: Shape, rates: Mapping[str, float], passes: tuple[str, ...] = PASSES) -> dict[str, float]:
    """The least seconds of a loss by what may limit it, at rates measured on the machine: "gemm" (FLOP of a matrix
    product in the dtype of the inputs a second), "exp2" (exponentials) and "copy" (bytes read and written)."""
    work = needed(shape, passes)
    return {
        "products": work.flop / rates["gemm"],
        "exponentials": work.exponentials / rates["exp2"],
        "memory": (work.bytes_read + work.bytes_written) / rates["copy"],
    }


def least_seconds(bounds: Mapping[str, float], overlap: bool) -> float:
    """Of all. ``overlap``: products and exponentials run at the same time, as on a GPU (tensor cores and
    special-function units) and not on a CPU. Memory always does."""
    products, exponentials, memory = bounds["products"], bounds["exponentials"], bounds["memory"]
    return max(memory, max(products, exponentials) if overlap else products + exponentials)


# What the kernels do


class TileLoop(NamedTuple):
    """Tiles that a kernel treats alike. A tile is ``rows`` (0: BLOCK_M) by BLOCK_N keys.

    ``widths``: columns of each product it makes, 2 · rows · BLOCK_N FLOP a column. ``exponentials``: for each of its
    elements; rescaling a running maximum takes a few more a row. ``tiles``: how many there are in a launch.
    """

    name: str
    widths: tuple[int, ...]
    exponentials: int
    tiles: int
    rows: int = 0


def tile_loops(kernel: str, values: Mapping[str, Any]) -> list[TileLoop]:
    """The loops over tiles in a launch of ``statistics_kernel`` or ``gradient_kernel``, by its arguments and switches.

    Raises:
        ValueError: another kernel.
    """
    if kernel == "statistics_kernel":
        return _statistics_by_squares(values) if values["OWN_M"] else _statistics_loops(values)
    if kernel == "gradient_kernel":
        return _gradient_by_squares(values) if values["OWN_M"] else _gradient_loops(values)
    raise ValueError(f"kernel must be statistics_kernel or gradient_kernel, got {kernel}")


def _blocks(rows: int, block: int) -> int:
    return -(-rows // block)


def _widths(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Of each peer."""
    return tuple(values[name] for name in ("WIDTH_1", "WIDTH_2") if name in values)


def _statistics_loops(values: Mapping[str, Any]) -> list[TileLoop]:
    """Row blocks of both views against both views, whole squares; the column splits share the keys of a row block."""
    keys = _blocks(values["rows_b"], values["BLOCK_N"])
    a, b = (_blocks(values[rows], values["BLOCK_M"]) * keys for rows in ("rows_a", "rows_b"))
    nt, kl = values["NT"], values["KL"]
    widths = _widths(values)
    out: list[TileLoop] = []
    if nt:
        # where the KL walks the cross-view tiles of view a, it takes NT-Xent's share along
        out += [
            TileLoop(f"NT-Xent, peer {peer + 1}", (widths[peer],), 1, (a + 2 * b) if kl else 2 * (a + b))
            for peer in range(2 if kl else 1)
        ]
    if kl:
        out.append(TileLoop("both peers, cross-view", widths, 4 if nt else 2, a))
    return out


def _statistics_by_squares(values: Mapping[str, Any]) -> list[TileLoop]:
    """The square across, of both peers together when KL, and of each view's own what is on and above the diagonal."""
    n, rows, own = values["BLOCK_N"], values["rows_a"], values["OWN_M"]
    widths = _widths(values)[: 2 if values["KL"] else 1]
    keys = _blocks(rows, n)
    # splits are whole tiles, and a block's own begin at its first row
    triangle = sum(keys - start // n for start in range(0, rows, own))
    across = TileLoop("across", widths, 4 if values["KL"] else 1, _blocks(rows, values["BLOCK_M"]) * keys)
    return [across, *(TileLoop(f"own, peer {peer}", (w,), 1, 2 * triangle, own) for peer, w in enumerate(widths, 1))]


def _gradient_by_squares(values: Mapping[str, Any]) -> list[TileLoop]:
    """The square across of both peers together, for the rows of either view; each view's own square."""
    n, m, own, rows = values["BLOCK_N"], values["BLOCK_M"], values["OWN_M"], values["rows_a"]
    width = values["WIDTH_1"]
    keys = _blocks(rows, n)
    return [
        TileLoop("across", (width,) * 4, 4, 2 * _blocks(rows, m) * keys),
        TileLoop("own", (width, width), 1, 4 * _blocks(rows, own) * keys, own),
    ]


def _gradient_loops(values: Mapping[str, Any]) -> list[TileLoop]:
    """Of each peer that gets a gradient: row blocks of both views, its own view first, then the other."""
    m, n = values["BLOCK_M"], values["BLOCK_N"]
    a, b = values["rows_a"], values["rows_b"]
    nt_exponentials = 1 if values["NT_STATIC"] else 2
    widths = _widths(values)
    out: list[TileLoop] = []
    for peer in range(1 if values["PEER_2"] == "none" else 2):
        own, other = widths[peer], widths[-1 - peer]
        if values["NT"]:
            same = _blocks(a, m) * _blocks(a, n) + _blocks(b, m) * _blocks(b, n)
            out.append(TileLoop(f"own view, peer {peer + 1}", (own, own), nt_exponentials, same))
        cross = _blocks(a, m) * _blocks(b, n) + _blocks(b, m) * _blocks(a, n)
        exponentials = (nt_exponentials if values["NT"] else 0) + (2 if values["KL"] else 0)
        products = (own, other, own) if values["KL"] else (own, own)
        out.append(TileLoop(f"other view, peer {peer + 1}", products, exponentials, cross))
    return out

"""Row normalisation: ẑ = z / max(‖z‖, 1e-12), as F.normalize, into the padded buffer the other kernels read.

Saved statistics, one float32 a row: inverse_norm = 1 / max(‖z‖, 1e-12). A row shorter than 1e-12 has exactly
inverse_norm = 1e12; its gradient is dz = 1e12 · dẑ (F.normalize's clamp), every other row's is
dz = (dẑ − ⟨dẑ, ẑ⟩ ẑ) · inverse_norm, applied where dẑ is made (dogo_backward.py).

Rows are first scaled by the power of two below max|z| (exact), so that float32 rows as large as 1e38 are normalised
without overflow; quotient and root are rounded to nearest, since an error common to a row is divided by the
temperature. A NaN or Inf makes its whole row NaN: Inf / Inf.

Memory: reads each view once (from cache two times more when a row has several chunks), writes rows × WIDTH once.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import narrow

CLAMPED = tl.constexpr(1e12)


class Pair(NamedTuple):
    """Both views of a peer, [rows_a, D] and [rows_b, D], in any float dtype and with any strides, and where their
    normalised rows go, [pad_a + pad_b, WIDTH]."""

    p_a: Any
    stride_a_row: Any
    stride_a_column: Any
    p_b: Any
    stride_b_row: Any
    stride_b_column: Any
    p_z: Any
    D: Any


class View(NamedTuple):
    """One view of a pair."""

    p: Any
    stride_row: Any
    stride_column: Any
    rows: Any
    D: Any


@triton.jit
def _load_rows(view, i_rows, i_column, BLOCK_D: tl.constexpr):
    i_columns = i_column + tl.arange(0, BLOCK_D)
    m_tile = (i_rows < view.rows)[:, None] & (i_columns < view.D)[None, :]
    offsets = i_rows.to(tl.int64)[:, None] * view.stride_row + i_columns.to(tl.int64)[None, :] * view.stride_column
    return tl.load(view.p + offsets, mask=m_tile, other=0.0).to(tl.float32)


@triton.jit
def _normalize_view(view, p_z, p_inverse_norm, i_rows, i_out, columns: tl.constexpr, INTERPRETED: tl.constexpr):
    """Rows i_rows of a view, to rows i_out of the buffer."""
    WIDTH: tl.constexpr = columns.WIDTH
    BLOCK_D: tl.constexpr = columns.BLOCK_D
    DTYPE: tl.constexpr = p_z.dtype.element_ty
    b_largest = tl.zeros(i_rows.shape, tl.float32)
    for i_column in range(0, WIDTH, BLOCK_D):
        b_z = _load_rows(view, i_rows, i_column, BLOCK_D)
        b_largest = tl.maximum(b_largest, tl.max(tl.abs(b_z), 1))
    # the exponent bits alone: 2^⌊log₂ max|z|⌋; 0 for a row so small that it is clamped anyway
    b_unit = (b_largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    b_unit = tl.where(b_unit == 0.0, 1.0, b_unit)
    b_squares = tl.zeros(i_rows.shape, tl.float32)
    for i_column in range(0, WIDTH, BLOCK_D):
        b_z = _load_rows(view, i_rows, i_column, BLOCK_D) / b_unit[:, None]
        b_squares += tl.sum(b_z * b_z, 1)
    b_length = tl.sqrt_rn(b_squares)
    # the comparison is false for NaN, which must stay NaN
    m_clamped = b_unit * b_length < 1.0 / CLAMPED
    b_length = tl.where(m_clamped, 1.0 / CLAMPED / b_unit, b_length)
    tl.store(p_inverse_norm + i_out, tl.where(m_clamped, CLAMPED, 1.0 / b_length / b_unit))
    for i_column in range(0, WIDTH, BLOCK_D):
        b_z = _load_rows(view, i_rows, i_column, BLOCK_D) / b_unit[:, None]
        i_columns = i_column + tl.arange(0, BLOCK_D)
        p_tile = p_z + i_out.to(tl.int64)[:, None] * WIDTH + i_columns[None, :]
        tl.store(p_tile, narrow(tl.div_rn(b_z, b_length[:, None]), DTYPE, INTERPRETED))


@triton.jit
def _normalize_pair(
    pair, p_inverse_norm, sizes, columns: tl.constexpr, BLOCK_ROWS: tl.constexpr, INTERPRETED: tl.constexpr
):
    """The rows of this program, of one view or of the other."""
    i_out = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    if tl.program_id(0) * BLOCK_ROWS < sizes.pad_a:
        view = View(pair.p_a, pair.stride_a_row, pair.stride_a_column, sizes.rows_a, pair.D)
        _normalize_view(view, pair.p_z, p_inverse_norm, i_out, i_out, columns, INTERPRETED)
    else:
        view = View(pair.p_b, pair.stride_b_row, pair.stride_b_column, sizes.rows_b, pair.D)
        _normalize_view(view, pair.p_z, p_inverse_norm, i_out - sizes.pad_a, i_out, columns, INTERPRETED)


@triton.jit
def normalize_kernel(
    pairs,
    p_inverse_norm,
    sizes,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PEERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Both views of every peer in one launch. Grid: ((pad_a + pad_b) / BLOCK_ROWS, PEERS); pad_a is a multiple of
    BLOCK_ROWS.

    pairs: a Pair a peer. columns_1, columns_2: their Columns. p_inverse_norm: [PEERS, pad_a + pad_b] float32.
    """
    if tl.program_id(1) == 0:
        _normalize_pair(pairs[0], p_inverse_norm, sizes, columns_1, BLOCK_ROWS, INTERPRETED)
    elif PEERS == 2:
        p_second = p_inverse_norm + sizes.pad_a + sizes.pad_b
        _normalize_pair(pairs[1], p_second, sizes, columns_2, BLOCK_ROWS, INTERPRETED)

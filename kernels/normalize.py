"""Row normalisation: ẑ = z / max(‖z‖, 1e-12), as F.normalize, into the padded buffer the other kernels read.

Saved statistics, one float32 a row: inverse_norm = 1 / max(‖z‖, 1e-12). A row shorter than 1e-12 has exactly
inverse_norm = 1e12; its gradient is dz = 1e12 · dẑ (F.normalize's clamp), every other row's is
dz = (dẑ − ⟨dẑ, ẑ⟩ ẑ) · inverse_norm, applied where dẑ is made (dogo_backward.py).

Rows are first scaled by the power of two below max|z| (exact), so that float32 rows as large as 1e38 are normalised
without overflow; quotient and root are rounded to nearest, since an error common to a row is divided by the
temperature. A NaN or Inf makes its whole row NaN: Inf / Inf.

Memory: reads each view once (from cache two times more when a row has several chunks), writes rows × WIDTH once.
"""

import triton
import triton.language as tl

from .tiles import narrow

CLAMPED = tl.constexpr(1e12)


@triton.jit
def _load_rows(p_z, i_rows, i_column, rows, D, stride_row, stride_column, BLOCK_D: tl.constexpr):
    i_columns = i_column + tl.arange(0, BLOCK_D)
    m_tile = (i_rows < rows)[:, None] & (i_columns < D)[None, :]
    offsets = i_rows.to(tl.int64)[:, None] * stride_row + i_columns.to(tl.int64)[None, :] * stride_column
    return tl.load(p_z + offsets, mask=m_tile, other=0.0).to(tl.float32)


@triton.jit
def _normalize_view(
    p_z,
    p_out,
    p_inverse_norm,
    i_rows,
    i_out,
    rows,
    stride_row,
    stride_column,
    D,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    b_largest = tl.zeros([BLOCK_ROWS], tl.float32)
    for i_column in range(0, WIDTH, BLOCK_D):
        b_z = _load_rows(p_z, i_rows, i_column, rows, D, stride_row, stride_column, BLOCK_D)
        b_largest = tl.maximum(b_largest, tl.max(tl.abs(b_z), 1))
    # the exponent bits alone: 2^⌊log₂ max|z|⌋; 0 for a row so small that it is clamped anyway
    b_unit = (b_largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    b_unit = tl.where(b_unit == 0.0, 1.0, b_unit)
    b_squares = tl.zeros([BLOCK_ROWS], tl.float32)
    for i_column in range(0, WIDTH, BLOCK_D):
        b_z = _load_rows(p_z, i_rows, i_column, rows, D, stride_row, stride_column, BLOCK_D) / b_unit[:, None]
        b_squares += tl.sum(b_z * b_z, 1)
    b_length = tl.sqrt_rn(b_squares)
    # the comparison is false for NaN, which must stay NaN
    m_clamped = b_unit * b_length < 1.0 / CLAMPED
    b_length = tl.where(m_clamped, 1.0 / CLAMPED / b_unit, b_length)
    tl.store(p_inverse_norm + i_out, tl.where(m_clamped, CLAMPED, 1.0 / b_length / b_unit))
    for i_column in range(0, WIDTH, BLOCK_D):
        b_z = _load_rows(p_z, i_rows, i_column, rows, D, stride_row, stride_column, BLOCK_D) / b_unit[:, None]
        i_columns = i_column + tl.arange(0, BLOCK_D)
        p_tile = p_out + i_out.to(tl.int64)[:, None] * WIDTH + i_columns[None, :]
        tl.store(p_tile, narrow(tl.div_rn(b_z, b_length[:, None]), p_out.dtype.element_ty, INTERPRETED))


@triton.jit
def _normalize_peer(
    p_a,
    p_b,
    p_out,
    p_inverse_norm,
    rows_a,
    rows_b,
    pad_a,
    stride_a_row,
    stride_a_column,
    stride_b_row,
    stride_b_column,
    D,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    i_out = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    if tl.program_id(0) * BLOCK_ROWS < pad_a:
        _normalize_view(
            p_a,
            p_out,
            p_inverse_norm,
            i_out,
            i_out,
            rows_a,
            stride_a_row,
            stride_a_column,
            D,
            WIDTH,
            BLOCK_D,
            BLOCK_ROWS,
            INTERPRETED,
        )
    else:
        i_rows = i_out - pad_a
        _normalize_view(
            p_b,
            p_out,
            p_inverse_norm,
            i_rows,
            i_out,
            rows_b,
            stride_b_row,
            stride_b_column,
            D,
            WIDTH,
            BLOCK_D,
            BLOCK_ROWS,
            INTERPRETED,
        )


@triton.jit
def normalize_kernel(
    p_a_1,
    p_b_1,
    p_z_1,
    p_a_2,
    p_b_2,
    p_z_2,
    p_inverse_norm,
    rows_a,
    rows_b,
    pad_a,
    pad_b,
    stride_a_1_row,
    stride_a_1_column,
    stride_b_1_row,
    stride_b_1_column,
    stride_a_2_row,
    stride_a_2_column,
    stride_b_2_row,
    stride_b_2_column,
    D_1,
    D_2,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    BLOCK_D_1: tl.constexpr,
    BLOCK_D_2: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PEERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Both views of every peer in one launch. Grid: ((pad_a + pad_b) / BLOCK_ROWS, PEERS); pad_a is a multiple of
    BLOCK_ROWS.

    p_a_p [rows_a, D_p], p_b_p [rows_b, D_p]: any strides, any float dtype. p_z_p: [pad_a + pad_b, WIDTH_p].
    p_inverse_norm: [PEERS, pad_a + pad_b] float32.
    """
    if tl.program_id(1) == 0:
        _normalize_peer(
            p_a_1,
            p_b_1,
            p_z_1,
            p_inverse_norm,
            rows_a,
            rows_b,
            pad_a,
            stride_a_1_row,
            stride_a_1_column,
            stride_b_1_row,
            stride_b_1_column,
            D_1,
            WIDTH_1,
            BLOCK_D_1,
            BLOCK_ROWS,
            INTERPRETED,
        )
    elif PEERS == 2:
        _normalize_peer(
            p_a_2,
            p_b_2,
            p_z_2,
            p_inverse_norm + pad_a + pad_b,
            rows_a,
            rows_b,
            pad_a,
            stride_a_2_row,
            stride_a_2_column,
            stride_b_2_row,
            stride_b_2_column,
            D_2,
            WIDTH_2,
            BLOCK_D_2,
            BLOCK_ROWS,
            INTERPRETED,
        )

"""Backward of NT-Xent, similarity KL and the whole DoGo loss. Notation and saved statistics: dogo_forward.py.

Gradient table, of cosines; g is the upstream gradient times the reduction's scale (1/2N, 1/N, 1/N², 1):

    NT-Xent        w_ij = g/τ · exp((s_ij − 1)/τ) (1/l_i + 1/l_j)      one exponential an element: S is symmetric
                   (running maximum: exp((s_ij − m_i)/τ)/l_i + exp((s_ij − m_j)/τ)/l_j)
    positives      w_i,pos(i) = −g/τ · (q_i + q_pos(i))                outside the loop, N × D work
    KL, student    w_ij = g/T_s · (P_s − P_t)_ij
    KL, teacher    w_ij = g/T_t · P_t,ij (Δ'_ij − Σ_k P_t,ik Δ'_ik)    Δ' = x_t − x_s; only when asked

of rows, and of temperatures:

    dẑ_i = Σ_j w_ij ẑ_j            dz_i = (dẑ_i − ⟨dẑ_i, ẑ_i⟩ ẑ_i)/‖z_i‖
    A loss depends on cosine/temperature only: dL/dτ = −1/(2τ) Σ_ij w_ij s_ij over all rows for NT-Xent (each s_ij
    stands in two rows), and dL/dT = −1/T Σ_ij w_ij (c_ij − m_i) over the queries for the KL, whose weights sum to 0 in
    every row.

Cosines are recomputed. Two divisions of the work, as in the forward:

    by rows       a program owns rows of one view of one peer, walks all keys, and writes their gradient. The cosines of
                  the view across are made for both peers, and so twice: 10 products an image and peer.
    by squares    of the whole loss, both peers students: a program owns rows of one view of both peers and walks the
                  view across, whose cosines serve both gradients, or rows of one view of one peer and walks their own:
                  8 products. Each leaves its part of dẑ, and finish_kernel adds the two, the positives and the rest.

Memory: the gradients, and in float32 a scratch of rows wider than BLOCK_D or, by squares, the two parts of dẑ. Nothing
of size N × N; no atomics: every sum has one owner and one fixed order, so two runs give the same bits.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import configurations
from .normalize import CLAMPED
from .tiles import (
    LN_2,
    LOG2_E,
    Values,
    cosines,
    dot,
    load_temperature,
    load_tile,
    load_tile_again,
    narrow,
    sum_of,
)

ROW_MULTIPLE = tl.constexpr(configurations.ROW_MULTIPLE)

# What launches pass, besides the structs of tiles.py


class Peer(NamedTuple):
    """Normalised rows, where the gradients of both views go, and in float32 a scratch [pad_a + pad_b, WIDTH] where
    WIDTH is above BLOCK_D, or by squares the parts of dẑ [(own view, view across), pad_a + pad_b, WIDTH]; None where
    the peer gets no gradient."""

    p_z: Any
    p_gradient_a: Any
    p_gradient_b: Any
    p_scratch: Any
    D: Any


class Statistics(NamedTuple):
    """What the forward saved of rows: see normalize.py and dogo_forward.py; and p_inner [peers, (NT-Xent, KL),
    pad_a + pad_b], Σ_j w_ij s_ij and Σ_j w_ij (c_ij − m_i) of every row, the latter of queries only, written when
    TEMPERATURE_GRADIENT."""

    p_inverse_norm: Any
    p_nt: Any
    p_kl: Any
    p_inner: Any


class Upstream(NamedTuple):
    """Upstream gradients: of the 0-d values, and of rows when PER_ROW."""

    values: Values
    p_factor: Any


class Asked(NamedTuple):
    """What is differentiated. PEER_2: "student", "teacher", or "none" (peer 2 is absent or constant)."""

    PEER_2: Any
    PER_ROW: Any
    TEMPERATURE_GRADIENT: Any


class TemperatureGradients(NamedTuple):
    """Pointers to where they go: of τ, and of the temperature that makes each peer's own distribution; where both peers
    are students they share one, and the first takes the sum."""

    p_temperature_gradient: Any
    p_kd_gradient_1: Any
    p_kd_gradient_2: Any


# What they are made into


class Own(NamedTuple):
    """The peer whose gradient a program makes; coefficients are g times the scales over τ and over T."""

    p_z: Any
    p_inverse_norm: Any
    p_scratch: Any
    p_inner: Any
    p_nt: Any
    p_kl: Any
    D: Any
    stride_nt: Any
    stride_kl: Any
    nt_coefficient: Any
    kl_coefficient: Any
    nt_rate: Any
    rate: Any


class Other(NamedTuple):
    """The peer that is only read."""

    p_z: Any
    p_kl: Any
    rate: Any


class Role(NamedTuple):
    """Of the rows, and of their peer in the KL; known when the kernel is compiled."""

    ROWS_ARE_QUERIES: Any
    IS_TEACHER: Any
    IS_FIRST: Any


class View(NamedTuple):
    """The rows of one view, of which a program begins at ``start``, and the keys of the other. Rows and keys count
    within their views, which begin at base_rows and base_keys of the buffer."""

    p_gradient: Any
    start: Any
    base_rows: Any
    base_keys: Any
    rows: Any
    keys: Any
    p_factor_rows: Any
    p_factor_keys: Any


class Block(NamedTuple):
    """The rows of a program: their numbers in the view and in the buffer, their first BLOCK_D columns, and of NT-Xent
    the upstream gradient, u_i = g_i/(τ l_i) and m_i."""

    i_local: Any
    i_rows: Any
    b_x: Any
    b_factor: Any
    b_u: Any
    b_max: Any


class Sums(NamedTuple):
    """dẑ of a block in its first BLOCK_D columns; Σ_j w_ij s_ij of NT-Xent, and Σ_j w_ij (c_ij − m_i) of the KL."""

    b_acc: Any
    b_nt_inner: Any
    b_kl_inner: Any


class Query(NamedTuple):
    """q = g/(T E) and m of both peers, and the teacher's mean Δ, of queries."""

    b_q_own: Any
    b_q_other: Any
    b_m_own: Any
    b_m_other: Any
    b_mean: Any


# Weights of pairs


@triton.jit
def _upstream(p_first, p_second, p_third, weight):
    """weight · (first + second) + third of the upstream gradients of 0-d outputs; None is an output without one."""
    total = 0.0
    if p_first is not None:
        total += weight * tl.load(p_first).to(tl.float32)
    if p_second is not None:
        total += weight * tl.load(p_second).to(tl.float32)
    if p_third is not None:
        total += tl.load(p_third).to(tl.float32)
    return total


@triton.jit
def _row_factor(p_factor, i_rows, rows, PER_ROW: tl.constexpr):
    """The upstream gradient of each row of a view (0 for padding), or 1 where the upstream gradient is one number."""
    if PER_ROW:
        b_factor = tl.load(p_factor + i_rows, mask=i_rows < rows, other=0.0).to(tl.float32)
    else:
        b_factor = tl.full(i_rows.shape, 1.0, tl.float32)
    return b_factor


@triton.jit
def _nt_weights(b_s, block, own, i_keys, b_factor_keys, STATIC: tl.constexpr):
    """w_ij of NT-Xent; u_i comes for the rows, and is read for the keys."""
    b_u_keys = own.nt_coefficient * b_factor_keys * tl.load(own.p_nt + i_keys)
    if STATIC:
        b_w = tl.exp2(b_s * own.nt_rate - own.nt_rate) * (block.b_u[:, None] + b_u_keys[None, :])
    else:
        b_max_keys = tl.load(own.p_nt + own.stride_nt + i_keys)
        b_w = tl.exp2((b_s - block.b_max[:, None]) * own.nt_rate) * block.b_u[:, None]
        b_w += tl.exp2((b_s - b_max_keys[None, :]) * own.nt_rate) * b_u_keys[None, :]
    return b_w


@triton.jit
def _kl_weights(b_c_own, b_c_other, query, rate_own, rate_other, IS_TEACHER: tl.constexpr, STATIC: tl.constexpr):
    """w_ij of the KL; what belongs to queries comes broadcast along their axis."""
    if STATIC:
        b_e_other = tl.exp2(b_c_other * rate_other - rate_other)
        b_delta = (b_c_own - b_c_other) * rate_own
        b_ratio = tl.exp2(b_delta)
        if IS_TEACHER:
            b_w = b_e_other * b_ratio * query.b_q_own * (b_delta - query.b_mean)
        else:
            b_w = b_e_other * (b_ratio * query.b_q_own - query.b_q_other)
    else:
        b_logit_own = (b_c_own - query.b_m_own) * rate_own
        b_logit_other = (b_c_other - query.b_m_other) * rate_other
        b_w = tl.exp2(b_logit_own) * query.b_q_own
        if IS_TEACHER:
            b_w *= b_logit_own - b_logit_other - query.b_mean
        else:
            b_w -= tl.exp2(b_logit_other) * query.b_q_other
    return b_w


@triton.jit
def _query_statistics(own, other, p_factor, i_queries, queries, role, STATIC: tl.constexpr, PER_ROW: tl.constexpr):
    """Of queries, each a vector."""
    b_scale = own.kl_coefficient * _row_factor(p_factor, i_queries, queries, PER_ROW)
    b_q_own = b_scale * tl.load(own.p_kl + i_queries)
    b_q_other = b_scale * tl.load(other.p_kl + i_queries)
    b_m_own = tl.full(i_queries.shape, 1.0, tl.float32)
    b_m_other = tl.full(i_queries.shape, 1.0, tl.float32)
    b_mean = tl.zeros(i_queries.shape, tl.float32)
    if not STATIC:
        b_m_own = tl.load(own.p_kl + 2 * own.stride_kl + i_queries)
        b_m_other = tl.load(other.p_kl + 2 * own.stride_kl + i_queries)
    if role.IS_TEACHER:
        # both in base 2, so that they cancel without a rounding between; q carries the factor
        b_mean = tl.load(own.p_kl + own.stride_kl + i_queries)
        b_q_own *= LN_2
        if not role.IS_FIRST:
            # X was summed with Δ = x_1 − x_2; here Δ = x_own − x_other
            b_mean = -b_mean
    return Query(b_q_own, b_q_other, b_m_own, b_m_other, b_mean)


@triton.jit
def _along(query, axis: tl.constexpr):
    """Vectors with a new axis."""
    return Query(
        tl.expand_dims(query.b_q_own, axis),
        tl.expand_dims(query.b_q_other, axis),
        tl.expand_dims(query.b_m_own, axis),
        tl.expand_dims(query.b_m_other, axis),
        tl.expand_dims(query.b_mean, axis),
    )


# Sums of weighted rows


@triton.jit
def _add_products(b_acc, b_w, b_y, own, i_rows, i_keys, columns: tl.constexpr, arithmetic: tl.constexpr):
    """dẑ += w · ẑ_keys: the first BLOCK_D columns in registers, later chunks in the float32 scratch rows of this
    program.

    Weights go to the tensor cores in bfloat16 beside bfloat16 rows (same range as float32); beside float16 rows they
    would underflow at large N or overflow under a loss scale, so there both operands are widened for tf32, which holds
    float16 rows exactly. In full float32 that product took 149 instructions an element on sm_90, and spilled.
    """
    p_z = own.p_z
    WIDTH: tl.constexpr = columns.WIDTH
    BLOCK_D: tl.constexpr = columns.BLOCK_D
    PRECISION: tl.constexpr = "tf32" if p_z.dtype.element_ty == tl.float16 else arithmetic.PRECISION
    b_w = _weights_like(b_w, p_z, arithmetic.INTERPRETED)
    b_acc += dot(b_w, _rows_for_weights(b_y), PRECISION, arithmetic.INTERPRETED)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            b_y_chunk = _rows_for_weights(load_tile(p_z, i_keys, i_column, WIDTH, BLOCK_D))
            p_tile = _scratch_tile(own, i_rows, i_column, columns)
            tl.store(p_tile, tl.load(p_tile) + dot(b_w, b_y_chunk, PRECISION, arithmetic.INTERPRETED))
        tl.debug_barrier()
    return b_acc


@triton.jit
def _weights_like(b_w, p_z, INTERPRETED: tl.constexpr):
    if p_z.dtype.element_ty == tl.bfloat16:
        b_w = narrow(b_w, tl.bfloat16, INTERPRETED)
    return b_w


@triton.jit
def _rows_for_weights(b_y):
    if b_y.dtype == tl.float16:
        b_y = b_y.to(tl.float32)
    return b_y


@triton.jit
def _scratch_tile(own, i_rows, i_column, columns: tl.constexpr):
    i_columns = i_column + tl.arange(0, columns.BLOCK_D)
    return own.p_scratch + i_rows.to(tl.int64)[:, None] * columns.WIDTH + i_columns[None, :]


@triton.jit
def _clear_scratch(own, i_rows, columns: tl.constexpr, BLOCK_M: tl.constexpr):
    WIDTH: tl.constexpr = columns.WIDTH
    BLOCK_D: tl.constexpr = columns.BLOCK_D
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            tl.store(_scratch_tile(own, i_rows, i_column, columns), tl.zeros([BLOCK_M, BLOCK_D], tl.float32))
        tl.debug_barrier()


@triton.jit
def _block(own, view, columns: tl.constexpr, losses: tl.constexpr, PER_ROW: tl.constexpr, BLOCK_M: tl.constexpr):
    i_local = view.start + tl.arange(0, BLOCK_M)
    i_rows = view.base_rows + i_local
    if BLOCK_M > ROW_MULTIPLE:  # in a view's own square the last block may reach beyond the padding
        i_rows = view.base_rows + tl.minimum(i_local, view.rows - 1)
    b_x = load_tile(own.p_z, i_rows, 0, columns.WIDTH, columns.BLOCK_D)
    b_factor, b_u, b_max = 0.0, 0.0, 0.0
    if losses.NT:
        b_factor = _row_factor(view.p_factor_rows, i_local, view.rows, PER_ROW)
        b_u = own.nt_coefficient * b_factor * tl.load(own.p_nt + i_rows)
        if not losses.NT_STATIC:
            b_max = tl.load(own.p_nt + own.stride_nt + i_rows)
    return Block(i_local, i_rows, b_x, b_factor, b_u, b_max)


@triton.jit
def _own_view(
    sums, block, own, view, STATIC: tl.constexpr, columns: tl.constexpr, asked: tl.constexpr,
    tile: tl.constexpr, arithmetic: tl.constexpr,
):  # fmt: skip
    """NT-Xent of the rows with those of their own view."""
    BLOCK_M: tl.constexpr = block.b_x.shape[0]
    b_acc, b_nt_inner, b_kl_inner = sums
    for i_start in range(0, view.rows, tile.BLOCK_N):
        i_local_keys = i_start + tl.arange(0, tile.BLOCK_N)
        i_keys = view.base_rows + i_local_keys
        b_y = load_tile(own.p_z, i_keys, 0, columns.WIDTH, columns.BLOCK_D)
        b_s = cosines(block.b_x, b_y, own.p_z, block.i_rows, i_keys, columns, arithmetic)
        b_factor_keys = _row_factor(view.p_factor_rows, i_local_keys, view.rows, asked.PER_ROW)
        b_w = _nt_weights(b_s, block, own, i_keys, b_factor_keys, STATIC)
        if (i_start < view.start + BLOCK_M) & (view.start < i_start + tile.BLOCK_N):
            b_w = tl.where(block.i_local[:, None] == i_local_keys[None, :], 0.0, b_w)
        if i_start + tile.BLOCK_N > view.rows:
            b_w = tl.where((i_local_keys < view.rows)[None, :], b_w, 0.0)
        if asked.TEMPERATURE_GRADIENT:
            b_nt_inner += tl.sum(b_w * b_s, 1)
        b_acc = _add_products(b_acc, b_w, b_y, own, block.i_rows, i_keys, columns, arithmetic)
    return Sums(b_acc, b_nt_inner, b_kl_inner)


@triton.jit
def _cross_view(
    sums,
    block,
    own,
    other,
    view,
    columns: tl.constexpr,
    columns_other: tl.constexpr,
    role,
    losses: tl.constexpr,
    asked: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """NT-Xent and the KL of the rows with the keys of the other view."""
    BLOCK_M: tl.constexpr = tile.BLOCK_M
    BLOCK_N: tl.constexpr = tile.BLOCK_N
    b_acc, b_nt_inner, b_kl_inner = sums
    if losses.KL:
        b_x_other = load_tile(other.p_z, block.i_rows, 0, columns_other.WIDTH, columns_other.BLOCK_D)
        if role.ROWS_ARE_QUERIES:
            query = _query_statistics(
                own, other, view.p_factor_rows, block.i_local, view.rows, role, losses.KL_STATIC, asked.PER_ROW,
            )  # fmt: skip
            query = _along(query, 1)
    for i_start in range(0, view.keys, BLOCK_N):
        i_local_keys = i_start + tl.arange(0, BLOCK_N)
        i_keys = view.base_keys + i_local_keys
        b_y = load_tile(own.p_z, i_keys, 0, columns.WIDTH, columns.BLOCK_D)
        b_s = cosines(block.b_x, b_y, own.p_z, block.i_rows, i_keys, columns, arithmetic)
        b_w = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if losses.NT:
            b_factor_keys = _row_factor(view.p_factor_keys, i_local_keys, view.keys, asked.PER_ROW)
            b_w = _nt_weights(b_s, block, own, i_keys, b_factor_keys, losses.NT_STATIC)
            if (i_start < view.start + BLOCK_M) & (view.start < i_start + BLOCK_N):
                b_w = tl.where(block.i_local[:, None] == i_local_keys[None, :], 0.0, b_w)
            if asked.TEMPERATURE_GRADIENT:
                b_nt_inner += tl.sum(tl.where((i_local_keys < view.keys)[None, :], b_w, 0.0) * b_s, 1)
        if losses.KL:
            b_y_other = load_tile(other.p_z, i_keys, 0, columns_other.WIDTH, columns_other.BLOCK_D)
            b_s_other = cosines(b_x_other, b_y_other, other.p_z, block.i_rows, i_keys, columns_other, arithmetic)
            if not role.ROWS_ARE_QUERIES:
                query = _query_statistics(
                    own, other, view.p_factor_keys, i_local_keys, view.keys, role, losses.KL_STATIC, asked.PER_ROW,
                )  # fmt: skip
                query = _along(query, 0)
            b_kl_w = _kl_weights(b_s, b_s_other, query, own.rate, other.rate, role.IS_TEACHER, losses.KL_STATIC)
            if asked.TEMPERATURE_GRADIENT and role.ROWS_ARE_QUERIES:
                m_keys = (i_local_keys < view.keys)[None, :]
                b_kl_inner += tl.sum(tl.where(m_keys, b_kl_w, 0.0) * (b_s - query.b_m_own), 1)
            b_w += b_kl_w
        if i_start + BLOCK_N > view.keys:
            # a padded key's cosine, 0, may lie far above a row's maximum: its exponential may be infinite
            b_w = tl.where((i_local_keys < view.keys)[None, :], b_w, 0.0)
        b_acc = _add_products(b_acc, b_w, b_y, own, block.i_rows, i_keys, columns, arithmetic)
    return Sums(b_acc, b_nt_inner, b_kl_inner)


# Rows


@triton.jit
def _finish(
    sums, block, own, view, NT: tl.constexpr, columns: tl.constexpr, asked: tl.constexpr, arithmetic: tl.constexpr
):
    """The positives, ⟨dẑ, ẑ⟩ over all chunks, and what is written."""
    WIDTH: tl.constexpr = columns.WIDTH
    BLOCK_D: tl.constexpr = columns.BLOCK_D
    p_z = own.p_z
    i_rows = block.i_rows
    i_positives = view.base_keys + block.i_local
    b_acc, b_nt_inner, b_kl_inner = sums
    b_x = load_tile_again(p_z, i_rows, 0, WIDTH, BLOCK_D)
    if NT:
        b_pull = block.b_factor * tl.load(own.p_nt + 2 * own.stride_nt + i_rows)
        b_pull += _row_factor(view.p_factor_keys, block.i_local, view.rows, asked.PER_ROW) * tl.load(
            own.p_nt + 2 * own.stride_nt + i_positives
        )
        b_pull *= own.nt_coefficient
        b_positive = load_tile(p_z, i_positives, 0, WIDTH, BLOCK_D).to(tl.float32)
        b_acc -= b_pull[:, None] * b_positive
        b_nt_inner -= b_pull * tl.sum(b_positive * b_x.to(tl.float32), 1)
    b_inner = tl.sum(b_acc * b_x.to(tl.float32), 1)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            p_tile = _scratch_tile(own, i_rows, i_column, columns)
            b_chunk = tl.load(p_tile)
            b_x_chunk = load_tile(p_z, i_rows, i_column, WIDTH, BLOCK_D).to(tl.float32)
            if NT:
                b_positive = load_tile(p_z, i_positives, i_column, WIDTH, BLOCK_D).to(tl.float32)
                b_chunk -= b_pull[:, None] * b_positive
                b_nt_inner -= b_pull * tl.sum(b_positive * b_x_chunk, 1)
                tl.store(p_tile, b_chunk)
            b_inner += tl.sum(b_chunk * b_x_chunk, 1)
        tl.debug_barrier()
    if asked.TEMPERATURE_GRADIENT:
        tl.store(own.p_inner + i_rows, b_nt_inner)
        tl.store(own.p_inner + own.stride_nt + i_rows, b_kl_inner)

    b_scale = tl.load(own.p_inverse_norm + i_rows)
    b_along = tl.where(b_scale >= CLAMPED, 0.0, b_inner)
    _store_gradient(b_acc, b_x, b_along, b_scale, own, view, block.i_local, 0, BLOCK_D, arithmetic.INTERPRETED)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            b_chunk = tl.load(_scratch_tile(own, i_rows, i_column, columns))
            b_x_chunk = load_tile(p_z, i_rows, i_column, WIDTH, BLOCK_D)
            _store_gradient(
                b_chunk, b_x_chunk, b_along, b_scale, own, view, block.i_local, i_column, BLOCK_D,
                arithmetic.INTERPRETED,
            )  # fmt: skip


@triton.jit
def _store_gradient(
    b_acc, b_x, b_along, b_scale, own, view, i_rows, i_column, BLOCK_D: tl.constexpr, INTERPRETED: tl.constexpr
):
    """dz = (dẑ − ⟨dẑ, ẑ⟩ ẑ)/‖z‖, into a contiguous [rows, D]."""
    DTYPE: tl.constexpr = view.p_gradient.dtype.element_ty
    i_columns = i_column + tl.arange(0, BLOCK_D)
    b_dz = (b_acc - b_along[:, None] * b_x.to(tl.float32)) * b_scale[:, None]
    p_tile = view.p_gradient + i_rows.to(tl.int64)[:, None] * own.D + i_columns[None, :]
    m_tile = (i_rows < view.rows)[:, None] & (i_columns < own.D)[None, :]
    tl.store(p_tile, narrow(b_dz, DTYPE, INTERPRETED), mask=m_tile)


@triton.jit
def _gradient_rows(
    own,
    other,
    view,
    columns: tl.constexpr,
    columns_other: tl.constexpr,
    role,
    losses: tl.constexpr,
    asked: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """The gradient of BLOCK_M rows of one view of one peer. One loop a view of keys: a loop that held NT-Xent and both
    peers' KL for both views spilled more than 350 bytes a thread on sm_90."""
    BLOCK_M: tl.constexpr = tile.BLOCK_M
    BLOCK_D: tl.constexpr = columns.BLOCK_D
    block = _block(own, view, columns, losses, asked.PER_ROW, BLOCK_M)
    _clear_scratch(own, block.i_rows, columns, BLOCK_M)
    b_none = tl.zeros([BLOCK_M], tl.float32)
    sums = Sums(tl.zeros([BLOCK_M, BLOCK_D], tl.float32), b_none, b_none)
    if losses.NT:
        sums = _own_view(sums, block, own, view, losses.NT_STATIC, columns, asked, tile, arithmetic)
    sums = _cross_view(sums, block, own, other, view, columns, columns_other, role, losses, asked, tile, arithmetic)
    _finish(sums, block, own, view, losses.NT, columns, asked, arithmetic)


@triton.jit
def _gradient_peer(
    peer,
    own,
    other,
    p_factor,
    sizes,
    columns: tl.constexpr,
    columns_other: tl.constexpr,
    PART: tl.constexpr,
    losses: tl.constexpr,
    asked: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Row blocks of view a, then of view b. PART: "first", "second", or "teacher", which is the second."""
    IS_TEACHER: tl.constexpr = PART == "teacher"
    IS_FIRST: tl.constexpr = PART == "first"
    rows_a, rows_b, pad_a, _ = sizes
    blocks_a = tl.cdiv(rows_a, tile.BLOCK_M)
    i_block = tl.program_id(0)
    p_factor_b = p_factor
    if asked.PER_ROW:
        p_factor_b += rows_a
    if i_block < blocks_a:
        view_a = View(peer.p_gradient_a, i_block * tile.BLOCK_M, 0, pad_a, rows_a, rows_b, p_factor, p_factor_b)
        _gradient_rows(
            own,
            other,
            view_a,
            columns,
            columns_other,
            Role(True, IS_TEACHER, IS_FIRST),
            losses,
            asked,
            tile,
            arithmetic,
        )
    else:
        start = (i_block - blocks_a) * tile.BLOCK_M
        view_b = View(peer.p_gradient_b, start, pad_a, 0, rows_b, rows_a, p_factor_b, p_factor)
        _gradient_rows(
            own,
            other,
            view_b,
            columns,
            columns_other,
            Role(False, IS_TEACHER, IS_FIRST),
            losses,
            asked,
            tile,
            arithmetic,
        )


# By squares


@triton.jit
def _zeros(BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, own):
    """Zeros that the compiler does not see to be. Into those that it sees ptxas makes products one after the other, a
    wait behind each (48 of 48 on sm_90, its warning C7515)."""
    return tl.zeros([BLOCK_M, WIDTH], tl.float32)


@triton.jit
def _part(own, i_rows, i_part, pad, WIDTH: tl.constexpr):
    """Where a part of dẑ lies: 0 of the own view, 1 of the view across."""
    i_part_rows = i_part * pad + i_rows.to(tl.int64)
    return own.p_scratch + i_part_rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _own_square(
    own, view, pad, columns: tl.constexpr, losses: tl.constexpr, asked: tl.constexpr, tile: tl.constexpr,
    arithmetic: tl.constexpr,
):  # fmt: skip
    """Part 0 of OWN_M rows of one view of one peer."""
    OWN_M: tl.constexpr = tile.OWN_M
    block = _block(own, view, columns, losses, False, OWN_M)
    b_none = tl.zeros([OWN_M], tl.float32)
    sums = Sums(_zeros(OWN_M, columns.WIDTH, own), b_none, b_none)
    sums = _own_view(sums, block, own, view, True, columns, asked, tile, arithmetic)
    m_rows = (block.i_local < view.rows)[:, None]
    tl.store(_part(own, block.i_rows, 0, pad, columns.WIDTH), sums.b_acc, mask=m_rows)


@triton.jit
def _cross_tiles(
    accs, blocks, b_rows, owns, view, in_b, tiles, ON_DIAGONAL: tl.constexpr, columns: tl.constexpr,
    tile: tl.constexpr, arithmetic: tl.constexpr,
):  # fmt: skip
    """NT-Xent and the KL of both peers' rows with tiles of the other view: those on the diagonal, or all the others. A
    loop of its own for the former: as a branch within one loop their mask cost 120 bytes of spilled registers.

    Everything else is without a branch, for either view: 1/E is that of queries, which are the rows or the keys, and 0
    for the others. As two loops it took 1.1 × the clocks and spilled."""
    b_acc_1, b_acc_2 = accs
    block_1, block_2 = blocks
    own_1, own_2 = owns
    queries = tl.where(in_b, view.keys, 0)
    for i_tile in range(tiles[0], tiles[1], tile.BLOCK_N):
        i_start = i_tile
        if not ON_DIAGONAL:
            i_start += tl.where(i_tile >= view.start, tile.BLOCK_M, 0)
        i_local_keys = i_start + tl.arange(0, tile.BLOCK_N)
        i_keys = view.base_keys + i_local_keys
        b_y_1 = load_tile(own_1.p_z, i_keys, 0, columns.WIDTH, columns.BLOCK_D)
        b_y_2 = load_tile(own_2.p_z, i_keys, 0, columns.WIDTH, columns.BLOCK_D)
        b_s_1 = cosines(block_1.b_x, b_y_1, own_1.p_z, block_1.i_rows, i_keys, columns, arithmetic)
        b_s_2 = cosines(block_2.b_x, b_y_2, own_2.p_z, block_2.i_rows, i_keys, columns, arithmetic)
        m_keys = i_local_keys < queries
        b_keys_1 = tl.load(own_1.p_kl + i_local_keys, mask=m_keys, other=0.0)
        b_keys_2 = tl.load(own_2.p_kl + i_local_keys, mask=m_keys, other=0.0)
        query = Query(b_rows[0][:, None] + b_keys_1[None, :], b_rows[1][:, None] + b_keys_2[None, :], 1.0, 1.0, 0.0)
        b_difference = _kl_weights(b_s_1, b_s_2, query, own_1.rate, own_1.rate, False, True)  # P₁ − P₂
        # no mask at the ragged end: with the constant shift a weight is finite, and a padded key's row is 0
        b_w_1 = _nt_weights(b_s_1, block_1, own_1, i_keys, 1.0, True)
        if ON_DIAGONAL:
            b_w_1 = tl.where(block_1.i_local[:, None] == i_local_keys[None, :], 0.0, b_w_1)
        b_w_1 += own_1.kl_coefficient * b_difference
        b_acc_1 = _add_products(b_acc_1, b_w_1, b_y_1, own_1, block_1.i_rows, i_keys, columns, arithmetic)
        b_w_2 = _nt_weights(b_s_2, block_2, own_2, i_keys, 1.0, True)
        if ON_DIAGONAL:
            b_w_2 = tl.where(block_1.i_local[:, None] == i_local_keys[None, :], 0.0, b_w_2)
        b_w_2 -= own_2.kl_coefficient * b_difference
        b_acc_2 = _add_products(b_acc_2, b_w_2, b_y_2, own_2, block_2.i_rows, i_keys, columns, arithmetic)
    return b_acc_1, b_acc_2


@triton.jit
def _cross_square(
    owns, view, in_b, pad, columns: tl.constexpr, losses: tl.constexpr, tile: tl.constexpr, arithmetic: tl.constexpr
):
    """Part 1 of BLOCK_M rows of one view of both peers."""
    BLOCK_M: tl.constexpr = tile.BLOCK_M
    own_1, own_2 = owns
    block_1 = _block(own_1, view, columns, losses, False, BLOCK_M)
    block_2 = _block(own_2, view, columns, losses, False, BLOCK_M)
    m_rows = (block_1.i_local >= 0) & (in_b == 0)
    b_rows_1 = tl.load(own_1.p_kl + block_1.i_local, mask=m_rows, other=0.0)
    b_rows_2 = tl.load(own_2.p_kl + block_1.i_local, mask=m_rows, other=0.0)
    b_zeros = tl.zeros([BLOCK_M, columns.WIDTH], tl.float32)
    after = tl.maximum(view.keys - view.start - BLOCK_M, 0)
    accs = _cross_tiles(
        (b_zeros, b_zeros), (block_1, block_2), (b_rows_1, b_rows_2), owns, view, in_b, (0, view.start + after), False,
        columns, tile, arithmetic,
    )  # fmt: skip
    accs = _cross_tiles(
        accs, (block_1, block_2), (b_rows_1, b_rows_2), owns, view, in_b,
        (view.start, tl.minimum(view.start + BLOCK_M, view.keys)), True, columns, tile, arithmetic,
    )  # fmt: skip
    tl.store(_part(own_1, block_1.i_rows, 1, pad, columns.WIDTH), accs[0])
    tl.store(_part(own_2, block_2.i_rows, 1, pad, columns.WIDTH), accs[1])


@triton.jit
def _either(is_first, own_1, own_2):
    """The peer of a program of an own square. With a branch for each, ptxas made every product of the kernel wait for
    the one before (its warning C7515)."""
    return Own(
        tl.where(is_first, own_1.p_z, own_2.p_z), None, tl.where(is_first, own_1.p_scratch, own_2.p_scratch), None,
        tl.where(is_first, own_1.p_nt, own_2.p_nt), None, own_1.D, own_1.stride_nt, own_1.stride_kl,
        tl.where(is_first, own_1.nt_coefficient, own_2.nt_coefficient), 0.0, own_1.nt_rate, 0.0,
    )  # fmt: skip


@triton.jit
def _view(peer, sizes, start, in_b):
    """Of a whole loss, both of whose views have as many rows: view a or, at run time, b."""
    rows, _, pad_a, _ = sizes
    base = tl.where(in_b, pad_a, 0)
    return View(peer, start, base, pad_a - base, rows, rows, None, None)


@triton.jit
def _by_squares(
    owns, sizes, columns: tl.constexpr, losses: tl.constexpr, asked: tl.constexpr,
    tile: tl.constexpr, arithmetic: tl.constexpr,
):  # fmt: skip
    """Programs of the square across, the dearest, for rows of view a and b; then of the views' own, of peer 1 and 2."""
    own_1, own_2 = owns
    pad = sizes.pad_a + sizes.pad_b
    blocks = tl.cdiv(sizes.rows_a, tile.BLOCK_M)
    own_blocks = tl.cdiv(sizes.rows_a, tile.OWN_M)
    i_program = tl.program_id(0)
    i_own = i_program - 2 * blocks
    if i_program < 2 * blocks:
        in_b = i_program >= blocks
        view = _view(None, sizes, (i_program % blocks) * tile.BLOCK_M, in_b)
        _cross_square(owns, view, in_b, pad, columns, losses, tile, arithmetic)
    else:
        view = _view(None, sizes, (i_own % own_blocks) * tile.OWN_M, (i_own // own_blocks) % 2 == 1)
        own = _either(i_own < 2 * own_blocks, own_1, own_2)
        _own_square(own, view, pad, columns, losses, asked, tile, arithmetic)


@triton.jit
def _finish_rows(
    peer, own, sizes, columns: tl.constexpr, losses: tl.constexpr, asked: tl.constexpr, BLOCK: tl.constexpr,
    arithmetic: tl.constexpr,
):  # fmt: skip
    """The gradient of this program's rows, of their two parts."""
    start = tl.program_id(0) * BLOCK
    pad = sizes.pad_a + sizes.pad_b
    b_none = tl.zeros([BLOCK], tl.float32)
    if start >= sizes.pad_a:
        view = _view(peer.p_gradient_b, sizes, start - sizes.pad_a, True)
    else:
        view = _view(peer.p_gradient_a, sizes, start, False)
    block = _block(own, view, columns, losses, False, BLOCK)
    m_rows = (block.i_local < view.rows)[:, None]
    b_own = tl.load(_part(own, block.i_rows, 0, pad, columns.WIDTH), mask=m_rows, other=0.0)
    b_cross = tl.load(_part(own, block.i_rows, 1, pad, columns.WIDTH), mask=m_rows, other=0.0)
    _finish(Sums(b_own + b_cross, b_none, b_none), block, own, view, True, columns, asked, arithmetic)


# Kernels


@triton.jit
def _owns(peers, statistics, upstream, temperatures, sizes, scales, losses: tl.constexpr, asked: tl.constexpr):
    """Own of each peer, the second's only where it gets a gradient."""
    PEER_2: tl.constexpr = asked.PEER_2
    p_inverse_norm, p_nt, p_kl, p_inner = statistics
    values, _ = upstream
    pad = sizes.pad_a + sizes.pad_b
    nt_1, nt_2, kl_1, kl_2 = 0.0, 0.0, 0.0, 0.0
    nt_rate, rate_1, rate_2 = 0.0, 0.0, 0.0
    p_kl_second = p_kl
    if losses.NT:
        tau = load_temperature(temperatures.temperature)
        nt_rate = LOG2_E / tau
        nt_1 = scales.nt_scale / tau
        nt_2 = scales.nt_scale / tau * _upstream(values.p_loss, values.p_loss_2, values.p_nt_xent_2, 1.0)
        if not asked.PER_ROW:
            nt_1 *= _upstream(values.p_loss, values.p_loss_1, values.p_nt_xent_1, 1.0)
    if losses.KL:
        kd_1 = load_temperature(temperatures.kd_temperature_1)
        kd_2 = load_temperature(temperatures.kd_temperature_2)
        rate_1 = LOG2_E / kd_1
        rate_2 = LOG2_E / kd_2
        kl_1 = scales.kl_scale
        if not asked.PER_ROW:
            kl_1 *= _upstream(values.p_loss, values.p_loss_1, values.p_kl_1, scales.kd_weight_1)
        if PEER_2 == "teacher":
            # the one KL there is, seen from its other side
            kl_2 = kl_1 / kd_2
        else:
            kl_2 = scales.kl_scale / kd_2 * _upstream(values.p_loss, values.p_loss_2, values.p_kl_2, scales.kd_weight_2)
        kl_1 /= kd_1
        p_kl_second = p_kl + 3 * sizes.pad_a
    p_inner_2 = p_inner
    p_nt_2 = p_nt
    if PEER_2 != "none":
        if asked.TEMPERATURE_GRADIENT:
            p_inner_2 += 2 * pad
        if losses.NT:
            p_nt_2 += 3 * pad
    first = peers[0]
    second = peers[-1]
    own_1 = Own(
        first.p_z, p_inverse_norm, first.p_scratch, p_inner, p_nt, p_kl, first.D, pad, sizes.pad_a,
        nt_1, kl_1, nt_rate, rate_1,
    )  # fmt: skip
    own_2 = Own(
        second.p_z, p_inverse_norm + pad, second.p_scratch, p_inner_2, p_nt_2, p_kl_second, second.D, pad, sizes.pad_a,
        nt_2, kl_2, nt_rate, rate_2,
    )  # fmt: skip
    return own_1, own_2


@triton.jit
def gradient_kernel(
    peers,
    statistics,
    upstream,
    temperatures,
    sizes,
    scales,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    losses: tl.constexpr,
    asked: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Gradients of every row. peers: a Peer each, and their Columns.

    Grid, by rows: (row blocks of views a and b, peers that get a gradient); by squares, which tile.OWN_M asks for:
    2 · row blocks of BLOCK_M + 4 · row blocks of OWN_M of a view.
    """
    PEER_2: tl.constexpr = asked.PEER_2
    own_1, own_2 = _owns(peers, statistics, upstream, temperatures, sizes, scales, losses, asked)
    if tile.OWN_M:
        _by_squares((own_1, own_2), sizes, columns_1, losses, asked, tile, arithmetic)
    elif tl.program_id(1) == 0:
        _gradient_peer(
            peers[0], own_1, Other(own_2.p_z, own_2.p_kl, own_2.rate), upstream.p_factor, sizes, columns_1, columns_2,
            "first", losses, asked, tile, arithmetic,
        )  # fmt: skip
    elif PEER_2 != "none":
        PART: tl.constexpr = "teacher" if PEER_2 == "teacher" else "second"
        _gradient_peer(
            peers[-1], own_2, Other(own_1.p_z, own_1.p_kl, own_1.rate), upstream.p_factor, sizes, columns_2, columns_1,
            PART, losses, asked, tile, arithmetic,
        )  # fmt: skip


@triton.jit
def finish_kernel(
    peers,
    statistics,
    upstream,
    temperatures,
    sizes,
    scales,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    losses: tl.constexpr,
    asked: tl.constexpr,
    BLOCK: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Gradients, of the parts that gradient_kernel left by squares. Grid: ((pad_a + pad_b) / BLOCK, 2)."""
    own_1, own_2 = _owns(peers, statistics, upstream, temperatures, sizes, scales, losses, asked)
    if tl.program_id(1) == 0:
        _finish_rows(peers[0], own_1, sizes, columns_1, losses, asked, BLOCK, arithmetic)
    else:
        _finish_rows(peers[-1], own_2, sizes, columns_2, losses, asked, BLOCK, arithmetic)


@triton.jit
def temperature_gradient_kernel(
    p_inner,
    gradients,
    temperatures,
    sizes,
    losses: tl.constexpr,
    PEER_2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of p_inner over rows, in one program."""
    rows_a, rows_b, pad_a, pad_b = sizes
    pad = pad_a + pad_b
    if losses.NT:
        tau = load_temperature(temperatures.temperature)
        inner = sum_of(p_inner, rows_a, BLOCK) + sum_of(p_inner + pad_a, rows_b, BLOCK)
        if PEER_2 != "none":
            inner += sum_of(p_inner + 2 * pad, rows_a, BLOCK) + sum_of(p_inner + 2 * pad + pad_a, rows_b, BLOCK)
        tl.store(gradients.p_temperature_gradient, -0.5 * inner / tau)
    if losses.KL:
        kd_1 = load_temperature(temperatures.kd_temperature_1)
        inner_1 = sum_of(p_inner + pad, rows_a, BLOCK)
        if PEER_2 != "none":
            inner_2 = sum_of(p_inner + 3 * pad, rows_a, BLOCK)
            if PEER_2 == "student":
                inner_1 += inner_2
            else:
                kd_2 = load_temperature(temperatures.kd_temperature_2)
                tl.store(gradients.p_kd_gradient_2, -inner_2 / kd_2)
        tl.store(gradients.p_kd_gradient_1, -inner_1 / kd_1)

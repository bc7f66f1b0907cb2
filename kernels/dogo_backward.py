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

Cosines are recomputed. Memory: the gradients, and a float32 scratch of rows wider than BLOCK_D. Nothing of size N × N;
no atomics: every row has one owner that walks all keys and writes its gradient once, so two runs give the same bits.
"""

import triton
import triton.language as tl

from .normalize import CLAMPED
from .tiles import LN_2, LOG2_E, cosines, dot, load_temperature, load_tile, load_tile_again, narrow


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
def _nt_weights(b_s, p_nt, b_u, b_max, i_keys, b_factor_keys, nt_coefficient, stride_nt, rate, STATIC: tl.constexpr):
    """w_ij of NT-Xent; u_i = g_i/(τ l_i) comes for the rows, and is read for the keys."""
    b_u_keys = nt_coefficient * b_factor_keys * tl.load(p_nt + i_keys)
    if STATIC:
        b_w = tl.exp2(b_s * rate - rate) * (b_u[:, None] + b_u_keys[None, :])
    else:
        b_max_keys = tl.load(p_nt + stride_nt + i_keys)
        b_w = tl.exp2((b_s - b_max[:, None]) * rate) * b_u[:, None]
        b_w += tl.exp2((b_s - b_max_keys[None, :]) * rate) * b_u_keys[None, :]
    return b_w


@triton.jit
def _kl_weights(
    b_c_own,
    b_c_other,
    b_q_own,
    b_q_other,
    b_m_own,
    b_m_other,
    b_mean,
    rate_own,
    rate_other,
    IS_TEACHER: tl.constexpr,
    STATIC: tl.constexpr,
):
    """w_ij of the KL; q = g/(T E), m and the teacher's mean Δ belong to queries and come broadcast along their axis."""
    if STATIC:
        b_e_other = tl.exp2(b_c_other * rate_other - rate_other)
        b_delta = (b_c_own - b_c_other) * rate_own
        b_ratio = tl.exp2(b_delta)
        if IS_TEACHER:
            b_w = b_e_other * b_ratio * b_q_own * (b_delta - b_mean)
        else:
            b_w = b_e_other * (b_ratio * b_q_own - b_q_other)
    else:
        b_logit_own = (b_c_own - b_m_own) * rate_own
        b_logit_other = (b_c_other - b_m_other) * rate_other
        b_w = tl.exp2(b_logit_own) * b_q_own
        if IS_TEACHER:
            b_w *= b_logit_own - b_logit_other - b_mean
        else:
            b_w -= tl.exp2(b_logit_other) * b_q_other
    return b_w


@triton.jit
def _query_statistics(
    p_kl_own,
    p_kl_other,
    p_factor,
    i_queries,
    queries,
    coefficient,
    stride_kl,
    IS_TEACHER: tl.constexpr,
    OWN_IS_FIRST: tl.constexpr,
    STATIC: tl.constexpr,
    PER_ROW: tl.constexpr,
):
    """(q_own, q_other, m_own, m_other, mean Δ) of queries, each a vector; q = coefficient · g/E."""
    b_scale = coefficient * _row_factor(p_factor, i_queries, queries, PER_ROW)
    b_q_own = b_scale * tl.load(p_kl_own + i_queries)
    b_q_other = b_scale * tl.load(p_kl_other + i_queries)
    b_m_own = tl.full(i_queries.shape, 1.0, tl.float32)
    b_m_other = tl.full(i_queries.shape, 1.0, tl.float32)
    b_mean = tl.zeros(i_queries.shape, tl.float32)
    if not STATIC:
        b_m_own = tl.load(p_kl_own + 2 * stride_kl + i_queries)
        b_m_other = tl.load(p_kl_other + 2 * stride_kl + i_queries)
    if IS_TEACHER:
        # both in base 2, so that they cancel without a rounding between; q carries the factor
        b_mean = tl.load(p_kl_own + stride_kl + i_queries)
        b_q_own *= LN_2
        if not OWN_IS_FIRST:
            # X was summed with Δ = x_1 − x_2; here Δ = x_own − x_other
            b_mean = -b_mean
    return b_q_own, b_q_other, b_m_own, b_m_other, b_mean


@triton.jit
def _add_products(
    b_acc,
    b_w,
    b_y,
    p_z,
    p_scratch,
    i_rows,
    i_keys,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """dẑ += w · ẑ_keys: the first BLOCK_D columns in registers, later chunks in the float32 scratch rows of this
    program.

    Weights go to the tensor cores in bfloat16 beside bfloat16 rows (same range as float32); beside float16 rows they
    would underflow at large N or overflow under a loss scale, so there both operands are widened for tf32, which holds
    float16 rows exactly. In full float32 that product took 149 instructions an element on sm_90, and spilled.
    """
    WEIGHT_PRECISION: tl.constexpr = "tf32" if p_z.dtype.element_ty == tl.float16 else PRECISION
    b_w = _weights_like(b_w, p_z, INTERPRETED)
    b_acc += dot(b_w, _rows_for_weights(b_y), WEIGHT_PRECISION, INTERPRETED)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            b_y_chunk = _rows_for_weights(load_tile(p_z, i_keys, i_column, WIDTH, BLOCK_D))
            i_columns = i_column + tl.arange(0, BLOCK_D)
            p_tile = p_scratch + i_rows.to(tl.int64)[:, None] * WIDTH + i_columns[None, :]
            tl.store(p_tile, tl.load(p_tile) + dot(b_w, b_y_chunk, WEIGHT_PRECISION, INTERPRETED))
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
def _scratch_tile(p_scratch, i_rows, i_column, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    i_columns = i_column + tl.arange(0, BLOCK_D)
    return p_scratch + i_rows.to(tl.int64)[:, None] * WIDTH + i_columns[None, :]


@triton.jit
def _gradient_rows(
    p_z,
    p_z_other,
    p_inverse_norm,
    p_gradient,
    p_scratch,
    p_inner,
    p_nt,
    p_kl,
    p_kl_other,
    p_factor_rows,
    p_factor_keys,
    nt_coefficient,
    kl_coefficient,
    nt_rate,
    rate,
    rate_other,
    row_start,
    base_rows,
    base_keys,
    rows,
    keys,
    pad,
    D,
    stride_nt,
    stride_kl,
    ROWS_ARE_QUERIES: tl.constexpr,
    NT: tl.constexpr,
    KL: tl.constexpr,
    IS_TEACHER: tl.constexpr,
    IS_FIRST: tl.constexpr,
    NT_STATIC: tl.constexpr,
    KL_STATIC: tl.constexpr,
    PER_ROW: tl.constexpr,
    TEMPERATURE_GRADIENT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_OTHER: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_D_OTHER: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_S_OTHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The gradient of BLOCK_M rows of one view of one peer; the other peer (p_z_other, p_kl_other) is only read.

    Rows and keys count within their views, which begin at base_rows and base_keys of the buffer. One loop a view: a
    loop that held NT-Xent and both peers' KL for both views spilled more than 350 bytes a thread on sm_90.
    """
    i_local = row_start + tl.arange(0, BLOCK_M)
    i_rows = base_rows + i_local
    b_x = load_tile(p_z, i_rows, 0, WIDTH, BLOCK_D)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            tl.store(
                _scratch_tile(p_scratch, i_rows, i_column, WIDTH, BLOCK_D), tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            )
        tl.debug_barrier()

    b_nt_inner = tl.zeros([BLOCK_M], tl.float32)
    if NT:
        b_factor = _row_factor(p_factor_rows, i_local, rows, PER_ROW)
        b_u = nt_coefficient * b_factor * tl.load(p_nt + i_rows)
        b_max = b_u
        if not NT_STATIC:
            b_max = tl.load(p_nt + stride_nt + i_rows)
        for i_start in range(0, rows, BLOCK_N):
            i_keys = i_start + tl.arange(0, BLOCK_N)
            b_y = load_tile(p_z, base_rows + i_keys, 0, WIDTH, BLOCK_D)
            b_s = cosines(b_x, b_y, p_z, i_rows, base_rows + i_keys, WIDTH, BLOCK_D, BLOCK_S, PRECISION, INTERPRETED)
            b_factor_keys = _row_factor(p_factor_rows, i_keys, rows, PER_ROW)
            b_w = _nt_weights(
                b_s, p_nt, b_u, b_max, base_rows + i_keys, b_factor_keys, nt_coefficient, stride_nt, nt_rate, NT_STATIC
            )
            if (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N):
                b_w = tl.where(i_local[:, None] == i_keys[None, :], 0.0, b_w)
            if i_start + BLOCK_N > rows:
                b_w = tl.where((i_keys < rows)[None, :], b_w, 0.0)
            if TEMPERATURE_GRADIENT:
                b_nt_inner += tl.sum(b_w * b_s, 1)
            b_acc = _add_products(
                b_acc, b_w, b_y, p_z, p_scratch, i_rows, base_rows + i_keys, WIDTH, BLOCK_D, PRECISION, INTERPRETED
            )

    b_kl_inner = tl.zeros([BLOCK_M], tl.float32)
    if KL:
        b_x_other = load_tile(p_z_other, i_rows, 0, WIDTH_OTHER, BLOCK_D_OTHER)
        if ROWS_ARE_QUERIES:
            b_q, b_q_other, b_m, b_m_other, b_mean = _query_statistics(
                p_kl, p_kl_other, p_factor_rows, i_local, rows, kl_coefficient, stride_kl,
                IS_TEACHER, IS_FIRST, KL_STATIC, PER_ROW,
            )  # fmt: skip
            b_q, b_q_other, b_mean = b_q[:, None], b_q_other[:, None], b_mean[:, None]
            b_m, b_m_other = b_m[:, None], b_m_other[:, None]
    for i_start in range(0, keys, BLOCK_N):
        i_local_keys = i_start + tl.arange(0, BLOCK_N)
        i_keys = base_keys + i_local_keys
        b_y = load_tile(p_z, i_keys, 0, WIDTH, BLOCK_D)
        b_s = cosines(b_x, b_y, p_z, i_rows, i_keys, WIDTH, BLOCK_D, BLOCK_S, PRECISION, INTERPRETED)
        b_w = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if NT:
            b_factor_keys = _row_factor(p_factor_keys, i_local_keys, keys, PER_ROW)
            b_w = _nt_weights(
                b_s, p_nt, b_u, b_max, i_keys, b_factor_keys, nt_coefficient, stride_nt, nt_rate, NT_STATIC
            )
            if (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N):
                b_w = tl.where(i_local[:, None] == i_local_keys[None, :], 0.0, b_w)
            if TEMPERATURE_GRADIENT:
                b_nt_inner += tl.sum(tl.where((i_local_keys < keys)[None, :], b_w, 0.0) * b_s, 1)
        if KL:
            b_y_other = load_tile(p_z_other, i_keys, 0, WIDTH_OTHER, BLOCK_D_OTHER)
            b_s_other = cosines(
                b_x_other,
                b_y_other,
                p_z_other,
                i_rows,
                i_keys,
                WIDTH_OTHER,
                BLOCK_D_OTHER,
                BLOCK_S_OTHER,
                PRECISION,
                INTERPRETED,
            )
            if not ROWS_ARE_QUERIES:
                b_q, b_q_other, b_m, b_m_other, b_mean = _query_statistics(
                    p_kl, p_kl_other, p_factor_keys, i_local_keys, keys, kl_coefficient, stride_kl,
                    IS_TEACHER, IS_FIRST, KL_STATIC, PER_ROW,
                )  # fmt: skip
                b_q, b_q_other, b_mean = b_q[None, :], b_q_other[None, :], b_mean[None, :]
                b_m, b_m_other = b_m[None, :], b_m_other[None, :]
            b_kl_w = _kl_weights(
                b_s, b_s_other, b_q, b_q_other, b_m, b_m_other, b_mean, rate, rate_other,
                IS_TEACHER, KL_STATIC,
            )  # fmt: skip
            if TEMPERATURE_GRADIENT and ROWS_ARE_QUERIES:
                b_kl_inner += tl.sum(tl.where((i_local_keys < keys)[None, :], b_kl_w, 0.0) * (b_s - b_m), 1)
            b_w += b_kl_w
        if i_start + BLOCK_N > keys:
            # a padded key's cosine, 0, may lie far above a row's maximum: its exponential may be infinite
            b_w = tl.where((i_local_keys < keys)[None, :], b_w, 0.0)
        b_acc = _add_products(b_acc, b_w, b_y, p_z, p_scratch, i_rows, i_keys, WIDTH, BLOCK_D, PRECISION, INTERPRETED)

    # The positives, and ⟨dẑ, ẑ⟩ over all chunks.
    b_x = load_tile_again(p_z, i_rows, 0, WIDTH, BLOCK_D)
    b_pull = tl.zeros([BLOCK_M], tl.float32)
    if NT:
        b_pull = b_factor * tl.load(p_nt + 2 * stride_nt + i_rows)
        b_pull += _row_factor(p_factor_keys, i_local, rows, PER_ROW) * tl.load(
            p_nt + 2 * stride_nt + base_keys + i_local
        )
        b_pull *= nt_coefficient
        b_positive = load_tile(p_z, base_keys + i_local, 0, WIDTH, BLOCK_D).to(tl.float32)
        b_acc -= b_pull[:, None] * b_positive
        b_nt_inner -= b_pull * tl.sum(b_positive * b_x.to(tl.float32), 1)
    b_inner = tl.sum(b_acc * b_x.to(tl.float32), 1)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            p_tile = _scratch_tile(p_scratch, i_rows, i_column, WIDTH, BLOCK_D)
            b_chunk = tl.load(p_tile)
            b_x_chunk = load_tile(p_z, i_rows, i_column, WIDTH, BLOCK_D).to(tl.float32)
            if NT:
                b_positive = load_tile(p_z, base_keys + i_local, i_column, WIDTH, BLOCK_D).to(tl.float32)
                b_chunk -= b_pull[:, None] * b_positive
                b_nt_inner -= b_pull * tl.sum(b_positive * b_x_chunk, 1)
                tl.store(p_tile, b_chunk)
            b_inner += tl.sum(b_chunk * b_x_chunk, 1)
        tl.debug_barrier()
    if TEMPERATURE_GRADIENT:
        tl.store(p_inner + i_rows, b_nt_inner)
        tl.store(p_inner + pad + i_rows, b_kl_inner)

    b_scale = tl.load(p_inverse_norm + i_rows)
    b_along = tl.where(b_scale >= CLAMPED, 0.0, b_inner)
    _store_gradient(p_gradient, b_acc, b_x, b_along, b_scale, i_local, rows, 0, D, BLOCK_D, INTERPRETED)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            b_chunk = tl.load(_scratch_tile(p_scratch, i_rows, i_column, WIDTH, BLOCK_D))
            b_x_chunk = load_tile(p_z, i_rows, i_column, WIDTH, BLOCK_D)
            _store_gradient(
                p_gradient, b_chunk, b_x_chunk, b_along, b_scale, i_local, rows, i_column, D, BLOCK_D, INTERPRETED
            )


@triton.jit
def _store_gradient(
    p_gradient,
    b_acc,
    b_x,
    b_along,
    b_scale,
    i_rows,
    rows,
    i_column,
    D,
    BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """dz = (dẑ − ⟨dẑ, ẑ⟩ ẑ)/‖z‖, into a contiguous [rows, D]."""
    i_columns = i_column + tl.arange(0, BLOCK_D)
    b_dz = (b_acc - b_along[:, None] * b_x.to(tl.float32)) * b_scale[:, None]
    p_tile = p_gradient + i_rows.to(tl.int64)[:, None] * D + i_columns[None, :]
    m_tile = (i_rows < rows)[:, None] & (i_columns < D)[None, :]
    tl.store(p_tile, narrow(b_dz, p_gradient.dtype.element_ty, INTERPRETED), mask=m_tile)


@triton.jit
def _gradient_peer(
    p_z,
    p_z_other,
    p_inverse_norm,
    p_gradient_a,
    p_gradient_b,
    p_scratch,
    p_inner,
    p_nt,
    p_kl,
    p_kl_other,
    p_factor,
    nt_coefficient,
    kl_coefficient,
    nt_rate,
    rate,
    rate_other,
    rows_a,
    rows_b,
    pad_a,
    pad_b,
    D,
    stride_nt,
    stride_kl,
    NT: tl.constexpr,
    KL: tl.constexpr,
    IS_TEACHER: tl.constexpr,
    IS_FIRST: tl.constexpr,
    NT_STATIC: tl.constexpr,
    KL_STATIC: tl.constexpr,
    PER_ROW: tl.constexpr,
    TEMPERATURE_GRADIENT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_OTHER: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_D_OTHER: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_S_OTHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Row blocks of view a, then of view b."""
    blocks_a = tl.cdiv(rows_a, BLOCK_M)
    i_block = tl.program_id(0)
    p_factor_b = p_factor
    if PER_ROW:
        p_factor_b += rows_a
    if i_block < blocks_a:
        _gradient_rows(
            p_z, p_z_other, p_inverse_norm, p_gradient_a, p_scratch, p_inner, p_nt, p_kl, p_kl_other, p_factor,
            p_factor_b,
            nt_coefficient, kl_coefficient, nt_rate, rate, rate_other, i_block * BLOCK_M, 0, pad_a, rows_a, rows_b,
            pad_a + pad_b, D,
            stride_nt, stride_kl, True, NT, KL, IS_TEACHER, IS_FIRST, NT_STATIC, KL_STATIC, PER_ROW,
            TEMPERATURE_GRADIENT, WIDTH, WIDTH_OTHER, BLOCK_D, BLOCK_D_OTHER, BLOCK_S, BLOCK_S_OTHER, BLOCK_M, BLOCK_N,
            PRECISION, INTERPRETED,
        )  # fmt: skip
    else:
        _gradient_rows(
            p_z, p_z_other, p_inverse_norm, p_gradient_b, p_scratch, p_inner, p_nt, p_kl, p_kl_other, p_factor_b,
            p_factor,
            nt_coefficient, kl_coefficient, nt_rate, rate, rate_other, (i_block - blocks_a) * BLOCK_M, pad_a, 0,
            rows_b, rows_a, pad_a + pad_b, D, stride_nt, stride_kl, False, NT, KL, IS_TEACHER, IS_FIRST, NT_STATIC,
            KL_STATIC, PER_ROW, TEMPERATURE_GRADIENT, WIDTH, WIDTH_OTHER, BLOCK_D, BLOCK_D_OTHER,
            BLOCK_S, BLOCK_S_OTHER,
            BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
        )  # fmt: skip


@triton.jit
def gradient_kernel(
    p_z_1,
    p_z_2,
    p_inverse_norm,
    p_gradient_a_1,
    p_gradient_b_1,
    p_gradient_a_2,
    p_gradient_b_2,
    p_scratch_1,
    p_scratch_2,
    p_inner,
    p_nt,
    p_kl,
    p_factor,
    p_loss,
    p_loss_1,
    p_loss_2,
    p_nt_xent_1,
    p_nt_xent_2,
    p_kl_1,
    p_kl_2,
    temperature,
    kd_temperature_1,
    kd_temperature_2,
    rows_a,
    rows_b,
    pad_a,
    pad_b,
    D_1,
    D_2,
    nt_scale,
    kl_scale,
    kd_weight_1,
    kd_weight_2,
    NT: tl.constexpr,
    KL: tl.constexpr,
    PEER_2: tl.constexpr,
    NT_STATIC: tl.constexpr,
    KL_STATIC: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    TENSOR_KD_TEMPERATURE_1: tl.constexpr,
    TENSOR_KD_TEMPERATURE_2: tl.constexpr,
    PER_ROW: tl.constexpr,
    TEMPERATURE_GRADIENT: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    BLOCK_D_1: tl.constexpr,
    BLOCK_D_2: tl.constexpr,
    BLOCK_S_1: tl.constexpr,
    BLOCK_S_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Gradients of every row. Grid: (row blocks of views a and b, peers that get a gradient).

    p_loss .. p_kl_2: upstream gradients of the 0-d outputs, None where there is none; p_factor: those of rows
    when PER_ROW. PEER_2: "student", "teacher", or "none" (peer 2 is absent or constant).
    p_inner: [peers, (NT-Xent, KL), pad_a + pad_b], Σ_j w_ij s_ij and Σ_j w_ij (c_ij − m_i) of every row, the latter of
    queries only; written when TEMPERATURE_GRADIENT.
    """
    pad = pad_a + pad_b
    nt_1, nt_2, kl_1, kl_2 = 0.0, 0.0, 0.0, 0.0
    nt_rate, rate_1, rate_2 = 0.0, 0.0, 0.0
    p_kl_second = p_kl
    if NT:
        tau = load_temperature(temperature, TENSOR_TEMPERATURE)
        nt_rate = LOG2_E / tau
        nt_1 = nt_scale / tau
        nt_2 = nt_scale / tau * _upstream(p_loss, p_loss_2, p_nt_xent_2, 1.0)
        if not PER_ROW:
            nt_1 *= _upstream(p_loss, p_loss_1, p_nt_xent_1, 1.0)
    if KL:
        kd_1 = load_temperature(kd_temperature_1, TENSOR_KD_TEMPERATURE_1)
        kd_2 = load_temperature(kd_temperature_2, TENSOR_KD_TEMPERATURE_2)
        rate_1 = LOG2_E / kd_1
        rate_2 = LOG2_E / kd_2
        kl_1 = kl_scale
        if not PER_ROW:
            kl_1 *= _upstream(p_loss, p_loss_1, p_kl_1, kd_weight_1)
        if PEER_2 == "teacher":
            # the one KL there is, seen from its other side
            kl_2 = kl_1 / kd_2
        else:
            kl_2 = kl_scale / kd_2 * _upstream(p_loss, p_loss_2, p_kl_2, kd_weight_2)
        kl_1 /= kd_1
        p_kl_second = p_kl + 3 * pad_a
    if tl.program_id(1) == 0:
        _gradient_peer(
            p_z_1, p_z_2, p_inverse_norm, p_gradient_a_1, p_gradient_b_1, p_scratch_1, p_inner, p_nt, p_kl, p_kl_second,
            p_factor, nt_1, kl_1, nt_rate, rate_1, rate_2, rows_a, rows_b, pad_a, pad_b, D_1, pad, pad_a,
            NT, KL, False, True, NT_STATIC, KL_STATIC, PER_ROW, TEMPERATURE_GRADIENT,
            WIDTH_1, WIDTH_2, BLOCK_D_1, BLOCK_D_2, BLOCK_S_1, BLOCK_S_2, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
        )  # fmt: skip
    elif PEER_2 != "none":
        p_inner_2 = p_inner
        p_nt_2 = p_nt
        if TEMPERATURE_GRADIENT:
            p_inner_2 += 2 * pad
        if NT:
            p_nt_2 += 3 * pad
        _gradient_peer(
            p_z_2, p_z_1, p_inverse_norm + pad, p_gradient_a_2, p_gradient_b_2, p_scratch_2, p_inner_2, p_nt_2,
            p_kl_second, p_kl, p_factor, nt_2, kl_2, nt_rate, rate_2, rate_1, rows_a, rows_b, pad_a, pad_b, D_2,
            pad, pad_a, NT, KL, PEER_2 == "teacher", False, NT_STATIC, KL_STATIC, PER_ROW,
            TEMPERATURE_GRADIENT, WIDTH_2, WIDTH_1, BLOCK_D_2, BLOCK_D_1, BLOCK_S_2, BLOCK_S_1, BLOCK_M, BLOCK_N,
            PRECISION, INTERPRETED,
        )  # fmt: skip


@triton.jit
def _sum_of(p_values, count, BLOCK: tl.constexpr):
    """The sum of count numbers in one fixed order."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        i_values = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_values + i_values, mask=i_values < count, other=0.0)
    return tl.sum(b_sum)


@triton.jit
def temperature_gradient_kernel(
    p_inner,
    p_temperature_gradient,
    p_kd_gradient_1,
    p_kd_gradient_2,
    temperature,
    kd_temperature_1,
    kd_temperature_2,
    rows_a,
    rows_b,
    pad_a,
    pad_b,
    NT: tl.constexpr,
    KL: tl.constexpr,
    PEER_2: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    TENSOR_KD_TEMPERATURE_1: tl.constexpr,
    TENSOR_KD_TEMPERATURE_2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of p_inner over rows, in one program.

    p_kd_gradient_1 and _2: of the temperature that makes each peer's own distribution; where both peers are students
    they share one, and the first takes the sum.
    """
    pad = pad_a + pad_b
    if NT:
        tau = load_temperature(temperature, TENSOR_TEMPERATURE)
        inner = _sum_of(p_inner, rows_a, BLOCK) + _sum_of(p_inner + pad_a, rows_b, BLOCK)
        if PEER_2 != "none":
            inner += _sum_of(p_inner + 2 * pad, rows_a, BLOCK) + _sum_of(p_inner + 2 * pad + pad_a, rows_b, BLOCK)
        tl.store(p_temperature_gradient, -0.5 * inner / tau)
    if KL:
        kd_1 = load_temperature(kd_temperature_1, TENSOR_KD_TEMPERATURE_1)
        inner_1 = _sum_of(p_inner + pad, rows_a, BLOCK)
        if PEER_2 != "none":
            inner_2 = _sum_of(p_inner + 3 * pad, rows_a, BLOCK)
            if PEER_2 == "student":
                inner_1 += inner_2
            else:
                kd_2 = load_temperature(kd_temperature_2, TENSOR_KD_TEMPERATURE_2)
                tl.store(p_kd_gradient_2, -inner_2 / kd_2)
        tl.store(p_kd_gradient_1, -inner_1 / kd_1)

"""NT-Xent, similarity KL and the whole DoGo loss: one family of kernels with compile-time switches.

Equations. Peer p has normalised rows ẑ = [â; b̂] (normalize.py), M = 2N of them for NT-Xent, R queries and C keys for the
KL; s_ij = ⟨ẑ_i, ẑ_j⟩, c_ij = ⟨â_i, b̂_j⟩; everything in float32, exponentials in base 2 (x₂ = x · log₂ e).

    NT-Xent     r_i = Σ_{j≠i,pos(i)} exp((s_ij − m_i)/τ)          nt_i = log(1 + r_i exp((m_i − s_{i,pos(i)})/τ))
    KL          E_p,i = Σ_j exp((c_p,ij − m_p,i)/T_p)             Δ_ij = (c_1,ij − 1)/T_1 − (c_2,ij − 1)/T_2
                X_2,i = Σ_j exp((c_2,ij − m_2,i)/T_2) Δ_ij        X_1,i = Σ_j exp((c_1,ij − m_1,i)/T_1) Δ_ij
                KL(P₂ ‖ P₁)_i =  (m_1 − 1)/T_1 − (m_2 − 1)/T_2 + log(E_1/E_2) − X_2/E_2
                KL(P₁ ‖ P₂)_i = −(m_1 − 1)/T_1 + (m_2 − 1)/T_2 − log(E_1/E_2) + X_1/E_1

The shift m is the constant 1 (STATIC: a cosine cannot exceed 1; needs 2/T ≤ 80 so that exp(−2/T) is a normal number) or
the running maximum of the row. Shifts are subtracted from cosines before the division by the temperature: at T = 0.02 this
keeps the exponent of a confident positive exact, where s/T − 1/T would lose 2e-6. For the KL, exp(x_1) is computed as
exp(x_2) · exp(Δ) when STATIC, so that the rounding of nearly equal peers cancels: equal peers give exactly 0.

Gradients with respect to cosines, g the upstream gradient times the reduction's scale (1/M, 1/N, 1/N², 1):

    NT-Xent            w_ij = g/τ · exp((s_ij − 1)/τ) (1/l_i + 1/l_j)     one exponential an element: S is symmetric
                       (online: exp((s_ij − m_i)/τ)/l_i + exp((s_ij − m_j)/τ)/l_j)
    positives          w_i,pos(i) = −g/τ · (q_i + q_pos(i))               outside the loop, N × D work
                       with l the sum that includes the positive and q = 1 − p_i,pos(i) = r/l: no difference of numbers near 1
    KL, student        w_ij = g/T_s · (P_s − P_t)_ij
    KL, teacher        w_ij = g/T_t · P_t,ij (Δ'_ij − Σ_k P_t,ik Δ'_ik)   Δ' = x_t − x_s; only when asked
    rows               dẑ_i = Σ_j w_ij ẑ_j,   dz_i = (dẑ_i − ⟨dẑ_i, ẑ_i⟩ ẑ_i)/‖z_i‖
    temperatures       the loss depends on cosine/temperature only, so by Euler's rule dL/dτ = −1/(2τ) Σ_i ⟨dẑ_i, ẑ_i⟩ over all
                       rows for NT-Xent, and dL/dT = −1/T Σ_i ⟨dẑ_i, ẑ_i⟩ over the queries for the KL.

Saved statistics (float32): nt [PEERS, (1/l, m, q), pad_a + pad_b] and kl [2, (1/E, X/E, m), pad_a], finite in padding rows.
The statistics kernel writes them a column split at a time, nt_partial [PEERS, (r, m, s_pos), SPLITS, pad_a + pad_b] and
kl_partial [2, (E, X, m), SPLITS, pad_a], and the finalize kernel merges the splits; m is not read back when STATIC.

Memory: the normalised rows in the product dtype, the statistics, float32 gradients of rows wider than BLOCK_D. Nothing of size N × N; no atomics: every row, forward and backward, has one owner and one
fixed order of sums, so two runs give the same bits.
"""

import triton
import triton.language as tl

from .normalize import CLAMPED
from .tiles import LN_2, LOG2_E, cosines, dot, load_temperature, load_tile, load_tile_again, narrow

# Below every cosine, rounding included: the shift of a row that has seen no key yet.
NO_KEY_YET = tl.constexpr(-2.0)


# ----------------------------------------------------------------------------------------------------- forward


@triton.jit
def _add_to_row_sum(b_s, b_sum, b_max, rate, STATIC: tl.constexpr):
    """Add the exponentials of a tile of cosines (−inf: left out) to the row sums; rate = log₂ e / τ."""
    if STATIC:
        b_sum += tl.sum(tl.exp2(b_s * rate - rate), 1)
    else:
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_sum = b_sum * tl.exp2((b_max - b_new_max) * rate) + tl.sum(tl.exp2((b_s - b_new_max[:, None]) * rate), 1)
        b_max = b_new_max
    return b_sum, b_max


@triton.jit
def _add_to_kl_sums(
    b_c_1, b_c_2, b_delta, b_e_1, b_x_1, b_m_1, b_e_2, b_x_2, b_m_2, rate_1, rate_2, STATIC: tl.constexpr
):
    """Add a tile to (E, X, m) of both peers; cosines are −inf where left out, Δ (in base 2) is finite everywhere."""
    if STATIC:
        b_exp_2 = tl.exp2(b_c_2 * rate_2 - rate_2)
        b_exp_1 = b_exp_2 * tl.exp2(b_delta)
    else:
        b_new_m_1 = tl.maximum(b_m_1, tl.max(b_c_1, 1))
        b_new_m_2 = tl.maximum(b_m_2, tl.max(b_c_2, 1))
        b_keep_1 = tl.exp2((b_m_1 - b_new_m_1) * rate_1)
        b_keep_2 = tl.exp2((b_m_2 - b_new_m_2) * rate_2)
        b_e_1 *= b_keep_1
        b_x_1 *= b_keep_1
        b_e_2 *= b_keep_2
        b_x_2 *= b_keep_2
        b_m_1 = b_new_m_1
        b_m_2 = b_new_m_2
        b_exp_1 = tl.exp2((b_c_1 - b_m_1[:, None]) * rate_1)
        b_exp_2 = tl.exp2((b_c_2 - b_m_2[:, None]) * rate_2)
    b_e_1 += tl.sum(b_exp_1, 1)
    b_e_2 += tl.sum(b_exp_2, 1)
    b_x_1 += tl.sum(b_exp_1 * b_delta, 1)
    b_x_2 += tl.sum(b_exp_2 * b_delta, 1)
    return b_e_1, b_x_1, b_m_1, b_e_2, b_x_2, b_m_2


@triton.jit
def _delta(b_c_1, b_c_2, rate_1, rate_2, EQUAL_TEMPERATURES: tl.constexpr):
    """Δ · log₂ e = (c_1 − 1) rate_1 − (c_2 − 1) rate_2, exact for equal cosines at equal temperatures."""
    b_delta = (b_c_1 - b_c_2) * rate_1
    if not EQUAL_TEMPERATURES:
        b_delta += (b_c_2 - 1.0) * (rate_1 - rate_2)
    return b_delta


@triton.jit
def _nt_over_keys(
    b_x,
    p_z,
    row_start,
    base_rows,
    base_keys,
    keys,
    start,
    stop,
    b_sum,
    b_max,
    b_positive,
    rate,
    SAME_VIEW: tl.constexpr,
    STATIC: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Row sums of one peer over keys start .. stop of one view; in its own view a row leaves itself out, in the other its
    positive, whose cosine is returned. row_start counts within the rows' view, which begins at base_rows of the buffer. Masks cost
    nothing in the tiles, nearly all, that are neither on the diagonal nor at the ragged end."""
    i_rows = row_start + tl.arange(0, BLOCK_M)
    for i_start in range(start, stop, BLOCK_N):
        i_keys = i_start + tl.arange(0, BLOCK_N)
        b_y = load_tile(p_z, base_keys + i_keys, 0, WIDTH, BLOCK_D)
        b_s = cosines(b_x, b_y, p_z, base_rows + i_rows, base_keys + i_keys, WIDTH, BLOCK_D, PRECISION, INTERPRETED)
        on_diagonal = (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N)
        if on_diagonal:
            m_diagonal = i_rows[:, None] == i_keys[None, :]
            if not SAME_VIEW:
                b_positive += tl.sum(tl.where(m_diagonal, b_s, 0.0), 1)
            b_s = tl.where(m_diagonal, float("-inf"), b_s)
        if i_start + BLOCK_N > keys:
            b_s = tl.where((i_keys < keys)[None, :], b_s, float("-inf"))
        b_sum, b_max = _add_to_row_sum(b_s, b_sum, b_max, rate, STATIC)
    return b_sum, b_max, b_positive


@triton.jit
def _joint_over_keys(
    b_x_1,
    b_x_2,
    p_z_1,
    p_z_2,
    row_start,
    base_keys,
    keys,
    start,
    stop,
    b_sum_1,
    b_max_1,
    b_positive_1,
    b_sum_2,
    b_max_2,
    b_positive_2,
    nt_rate,
    rate_1,
    rate_2,
    NT: tl.constexpr,
    NT_STATIC: tl.constexpr,
    KL_STATIC: tl.constexpr,
    EQUAL_TEMPERATURES: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    BLOCK_D_1: tl.constexpr,
    BLOCK_D_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Cross-view tiles of both peers held together: the KL sums, and the same tiles' share of both NT-Xent row sums."""
    i_rows = row_start + tl.arange(0, BLOCK_M)
    b_e_1 = tl.zeros([BLOCK_M], tl.float32)
    b_x_sum_1 = tl.zeros([BLOCK_M], tl.float32)
    b_m_1 = tl.full([BLOCK_M], NO_KEY_YET, tl.float32)
    b_e_2 = tl.zeros([BLOCK_M], tl.float32)
    b_x_sum_2 = tl.zeros([BLOCK_M], tl.float32)
    b_m_2 = tl.full([BLOCK_M], NO_KEY_YET, tl.float32)
    for i_start in range(start, stop, BLOCK_N):
        i_keys = i_start + tl.arange(0, BLOCK_N)
        i_buffer = base_keys + i_keys
        b_y_1 = load_tile(p_z_1, i_buffer, 0, WIDTH_1, BLOCK_D_1)
        b_c_1 = cosines(b_x_1, b_y_1, p_z_1, i_rows, i_buffer, WIDTH_1, BLOCK_D_1, PRECISION, INTERPRETED)
        b_y_2 = load_tile(p_z_2, i_buffer, 0, WIDTH_2, BLOCK_D_2)
        b_c_2 = cosines(b_x_2, b_y_2, p_z_2, i_rows, i_buffer, WIDTH_2, BLOCK_D_2, PRECISION, INTERPRETED)
        b_delta = _delta(b_c_1, b_c_2, rate_1, rate_2, EQUAL_TEMPERATURES)
        if i_start + BLOCK_N > keys:
            m_keys = (i_keys < keys)[None, :]
            b_c_1 = tl.where(m_keys, b_c_1, float("-inf"))
            b_c_2 = tl.where(m_keys, b_c_2, float("-inf"))
        if NT:
            b_s_1 = b_c_1
            b_s_2 = b_c_2
            if (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N):
                m_diagonal = i_rows[:, None] == i_keys[None, :]
                b_positive_1 += tl.sum(tl.where(m_diagonal, b_c_1, 0.0), 1)
                b_positive_2 += tl.sum(tl.where(m_diagonal, b_c_2, 0.0), 1)
                b_s_1 = tl.where(m_diagonal, float("-inf"), b_c_1)
                b_s_2 = tl.where(m_diagonal, float("-inf"), b_c_2)
            b_sum_1, b_max_1 = _add_to_row_sum(b_s_1, b_sum_1, b_max_1, nt_rate, NT_STATIC)
            b_sum_2, b_max_2 = _add_to_row_sum(b_s_2, b_sum_2, b_max_2, nt_rate, NT_STATIC)
        b_e_1, b_x_sum_1, b_m_1, b_e_2, b_x_sum_2, b_m_2 = _add_to_kl_sums(
            b_c_1, b_c_2, b_delta, b_e_1, b_x_sum_1, b_m_1, b_e_2, b_x_sum_2, b_m_2, rate_1, rate_2, KL_STATIC
        )
    kl_sums = (b_e_1, b_x_sum_1, b_m_1, b_e_2, b_x_sum_2, b_m_2)
    return b_sum_1, b_max_1, b_positive_1, b_sum_2, b_max_2, b_positive_2, kl_sums


@triton.jit
def _store_three(p_statistics, b_first, b_second, b_third, stride):
    tl.store(p_statistics, b_first)
    tl.store(p_statistics + stride, b_second)
    tl.store(p_statistics + 2 * stride, b_third)


@triton.jit
def _nt_rows(
    p_z,
    p_nt,
    row_start,
    base_rows,
    base_others,
    keys,
    start,
    stop,
    stride_split,
    rate,
    STATIC: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """NT-Xent statistics of a row block of one peer: its own view, then the other."""
    i_rows = base_rows + row_start + tl.arange(0, BLOCK_M)
    b_x = load_tile(p_z, i_rows, 0, WIDTH, BLOCK_D)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_max = tl.full([BLOCK_M], NO_KEY_YET, tl.float32)
    b_positive = tl.zeros([BLOCK_M], tl.float32)
    b_sum, b_max, b_positive = _nt_over_keys(
        b_x, p_z, row_start, base_rows, base_rows, keys, start, stop, b_sum, b_max, b_positive, rate,
        True, STATIC, WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
    )  # fmt: skip
    b_sum, b_max, b_positive = _nt_over_keys(
        b_x, p_z, row_start, base_rows, base_others, keys, start, stop, b_sum, b_max, b_positive, rate,
        False, STATIC, WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
    )  # fmt: skip
    _store_three(p_nt + i_rows, b_sum, b_max, b_positive, stride_split)


@triton.jit
def _joint_rows(
    p_z_1,
    p_z_2,
    p_nt,
    p_kl,
    row_start,
    pad_a,
    keys,
    start,
    stop,
    stride_nt,
    stride_kl,
    nt_rate,
    rate_1,
    rate_2,
    NT: tl.constexpr,
    NT_STATIC: tl.constexpr,
    KL_STATIC: tl.constexpr,
    EQUAL_TEMPERATURES: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    BLOCK_D_1: tl.constexpr,
    BLOCK_D_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """KL statistics of a row block of view a and, when NT, both peers' NT-Xent statistics of the same rows."""
    i_rows = row_start + tl.arange(0, BLOCK_M)
    b_x_1 = load_tile(p_z_1, i_rows, 0, WIDTH_1, BLOCK_D_1)
    b_x_2 = load_tile(p_z_2, i_rows, 0, WIDTH_2, BLOCK_D_2)
    b_sum_1 = tl.zeros([BLOCK_M], tl.float32)
    b_max_1 = tl.full([BLOCK_M], NO_KEY_YET, tl.float32)
    b_positive_1 = tl.zeros([BLOCK_M], tl.float32)
    b_sum_2 = tl.zeros([BLOCK_M], tl.float32)
    b_max_2 = tl.full([BLOCK_M], NO_KEY_YET, tl.float32)
    b_positive_2 = tl.zeros([BLOCK_M], tl.float32)
    if NT:
        b_sum_1, b_max_1, b_positive_1 = _nt_over_keys(
            b_x_1, p_z_1, row_start, 0, 0, keys, start, stop, b_sum_1, b_max_1, b_positive_1, nt_rate,
            True, NT_STATIC, WIDTH_1, BLOCK_D_1, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
        )  # fmt: skip
        b_sum_2, b_max_2, b_positive_2 = _nt_over_keys(
            b_x_2, p_z_2, row_start, 0, 0, keys, start, stop, b_sum_2, b_max_2, b_positive_2, nt_rate,
            True, NT_STATIC, WIDTH_2, BLOCK_D_2, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
        )  # fmt: skip
    b_sum_1, b_max_1, b_positive_1, b_sum_2, b_max_2, b_positive_2, kl_sums = _joint_over_keys(
        b_x_1, b_x_2, p_z_1, p_z_2, row_start, pad_a, keys, start, stop,
        b_sum_1, b_max_1, b_positive_1, b_sum_2, b_max_2, b_positive_2, nt_rate, rate_1, rate_2,
        NT, NT_STATIC, KL_STATIC, EQUAL_TEMPERATURES, WIDTH_1, WIDTH_2, BLOCK_D_1, BLOCK_D_2, BLOCK_M, BLOCK_N,
        PRECISION, INTERPRETED,
    )  # fmt: skip
    _store_three(p_kl + i_rows, kl_sums[0], kl_sums[1], kl_sums[2], stride_kl)
    _store_three(p_kl + 3 * stride_kl + i_rows, kl_sums[3], kl_sums[4], kl_sums[5], stride_kl)
    if NT:
        _store_three(p_nt + i_rows, b_sum_1, b_max_1, b_positive_1, stride_nt)
        _store_three(p_nt + 3 * stride_nt + i_rows, b_sum_2, b_max_2, b_positive_2, stride_nt)


@triton.jit
def statistics_kernel(
    p_z_1,
    p_z_2,
    p_nt,
    p_kl,
    temperature,
    kd_temperature_1,
    kd_temperature_2,
    rows_a,
    rows_b,
    pad_a,
    pad_b,
    NT: tl.constexpr,
    KL: tl.constexpr,
    NT_STATIC: tl.constexpr,
    KL_STATIC: tl.constexpr,
    EQUAL_TEMPERATURES: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    TENSOR_KD_TEMPERATURE_1: tl.constexpr,
    TENSOR_KD_TEMPERATURE_2: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    BLOCK_D_1: tl.constexpr,
    BLOCK_D_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Row statistics. Grid: (row blocks of view a, then of view b when NT; SPLITS). Peers: two when KL, else one.

    A program owns BLOCK_M rows of one view and walks its split of the keys, rows_b in each view (NT-Xent is square).
    """
    i_split = tl.program_id(1)
    blocks_a = tl.cdiv(rows_a, BLOCK_M)
    in_b = tl.program_id(0) >= blocks_a
    base_rows = tl.where(in_b, pad_a, 0)
    row_start = (tl.program_id(0) - tl.where(in_b, blocks_a, 0)) * BLOCK_M
    per_split = tl.cdiv(tl.cdiv(rows_b, BLOCK_N), SPLITS) * BLOCK_N
    start = i_split * per_split
    stop = tl.minimum(start + per_split, rows_b)
    stride_nt = SPLITS * (pad_a + pad_b)
    stride_kl = SPLITS * pad_a
    nt_rate = 0.0
    if NT:
        nt_rate = LOG2_E / load_temperature(temperature, TENSOR_TEMPERATURE)
        p_nt += i_split * (pad_a + pad_b)
    if KL:
        rate_1 = LOG2_E / load_temperature(kd_temperature_1, TENSOR_KD_TEMPERATURE_1)
        rate_2 = LOG2_E / load_temperature(kd_temperature_2, TENSOR_KD_TEMPERATURE_2)
        if in_b:
            if NT:
                _nt_rows(
                    p_z_1, p_nt, row_start, pad_a, 0, rows_b, start, stop, stride_nt, nt_rate,
                    NT_STATIC, WIDTH_1, BLOCK_D_1, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
                )  # fmt: skip
                _nt_rows(
                    p_z_2, p_nt + 3 * stride_nt, row_start, pad_a, 0, rows_b, start, stop, stride_nt, nt_rate,
                    NT_STATIC, WIDTH_2, BLOCK_D_2, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
                )  # fmt: skip
        else:
            _joint_rows(
                p_z_1, p_z_2, p_nt, p_kl + i_split * pad_a, row_start, pad_a, rows_b, start, stop, stride_nt, stride_kl,
                nt_rate, rate_1, rate_2, NT, NT_STATIC, KL_STATIC, EQUAL_TEMPERATURES,
                WIDTH_1, WIDTH_2, BLOCK_D_1, BLOCK_D_2, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
            )  # fmt: skip
    else:
        _nt_rows(
            p_z_1, p_nt, row_start, base_rows, pad_a - base_rows, rows_b, start, stop, stride_nt, nt_rate,
            NT_STATIC, WIDTH_1, BLOCK_D_1, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- values


@triton.jit
def _merge_sums(
    p_sum, p_max, m_rows, rate, stride, STATIC: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """(sum, max) of rows over the column splits."""
    b_max = tl.full([BLOCK], 1.0, tl.float32)
    if not STATIC:
        b_max = tl.load(p_max, mask=m_rows, other=1.0)
        for i_split in range(1, SPLITS):
            b_max = tl.maximum(b_max, tl.load(p_max + i_split * stride, mask=m_rows, other=1.0))
    return _merge_along(p_sum, p_max, b_max, m_rows, 1.0, rate, stride, STATIC, SPLITS), b_max


@triton.jit
def _merge_along(p_sum, p_max, b_max, m_rows, other, rate, stride, STATIC: tl.constexpr, SPLITS: tl.constexpr):
    """Σ over splits of sum · exp2((max_split − max) rate)."""
    b_total = tl.zeros_like(b_max)
    for i_split in range(0, SPLITS):
        b_sum = tl.load(p_sum + i_split * stride, mask=m_rows, other=other)
        if not STATIC:
            b_sum *= tl.exp2((tl.load(p_max + i_split * stride, mask=m_rows, other=1.0) - b_max) * rate)
        b_total += b_sum
    return b_total


@triton.jit
def _log_one_plus(b_x):
    """log(1 + x) for 0 ≤ x ≤ 1, right also where 1 + x rounds to 1 (Kahan): the rounding of 1 + x is divided out."""
    b_sum = 1.0 + b_x
    b_gained = b_sum - 1.0
    return tl.where(b_gained == 0.0, b_x, tl.log(b_sum) * (b_x / tl.where(b_gained == 0.0, 1.0, b_gained)))


@triton.jit
def _nt_values(
    p_partial,
    p_nt,
    p_rows,
    rows,
    pad_a,
    pad_b,
    rate,
    start,
    STATIC: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """NT-Xent of rows start .. start + BLOCK of the padded buffer (0 for padding), written to p_rows [2N] unless None."""
    i_rows = start + tl.arange(0, BLOCK)
    in_b = i_rows >= pad_a
    pad = pad_a + pad_b
    m_rows = tl.where(in_b, i_rows - pad_a, i_rows) < rows
    p_sum = p_partial + i_rows
    p_max = p_sum + SPLITS * pad
    b_sum, b_max = _merge_sums(p_sum, p_max, m_rows, rate, pad, STATIC, SPLITS, BLOCK)
    b_positive = tl.zeros([BLOCK], tl.float32)
    for i_split in range(0, SPLITS):
        b_positive += tl.load(p_max + (SPLITS + i_split) * pad, mask=m_rows, other=0.0)
    # softplus of the negatives' log-sum-exp less the positive's logit: exact where the positive is confident
    b_logit = tl.log(b_sum) + (b_max - b_positive) * (rate * LN_2)
    b_values = tl.where(b_logit > 0.0, b_logit, 0.0) + _log_one_plus(tl.exp2(-tl.abs(b_logit) * LOG2_E))
    b_values = tl.where(m_rows, b_values, 0.0)
    b_row_max = b_max
    if not STATIC:
        b_row_max = tl.maximum(b_max, b_positive)
        b_sum *= tl.exp2((b_max - b_row_max) * rate)
    b_total = b_sum + tl.exp2((b_positive - b_row_max) * rate)
    tl.store(p_nt + i_rows, 1.0 / b_total, mask=i_rows < pad)
    tl.store(p_nt + pad + i_rows, b_row_max, mask=i_rows < pad)
    tl.store(p_nt + 2 * pad + i_rows, b_sum / b_total, mask=i_rows < pad)
    if p_rows is not None:
        tl.store(p_rows + tl.where(in_b, i_rows - pad_a + rows, i_rows), b_values, mask=m_rows)
    return b_values


@triton.jit
def _kl_values(
    p_partial,
    p_kl,
    p_rows,
    rows,
    pad_a,
    rate_1,
    rate_2,
    start,
    STATIC: tl.constexpr,
    EQUAL_TEMPERATURES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """KL(P₂ ‖ P₁) and KL(P₁ ‖ P₂) of rows start .. start + BLOCK (0 for padding); the first also to p_rows [R] unless None."""
    i_rows = start + tl.arange(0, BLOCK)
    m_rows = i_rows < rows
    stride = SPLITS * pad_a
    p_1 = p_partial + i_rows
    p_2 = p_1 + 3 * stride
    b_e_1, b_m_1 = _merge_sums(p_1, p_1 + 2 * stride, m_rows, rate_1, pad_a, STATIC, SPLITS, BLOCK)
    b_e_2, b_m_2 = _merge_sums(p_2, p_2 + 2 * stride, m_rows, rate_2, pad_a, STATIC, SPLITS, BLOCK)
    b_x_1 = _merge_along(p_1 + stride, p_1 + 2 * stride, b_m_1, m_rows, 0.0, rate_1, pad_a, STATIC, SPLITS)
    b_x_2 = _merge_along(p_2 + stride, p_2 + 2 * stride, b_m_2, m_rows, 0.0, rate_2, pad_a, STATIC, SPLITS)
    b_normalizers = LN_2 * _delta(b_m_1, b_m_2, rate_1, rate_2, EQUAL_TEMPERATURES)
    # tl.log, not tl.log2: the hardware's log2 is off by 2e-7 near 1, which is where nearly equal peers are
    b_normalizers += tl.log(tl.div_rn(b_e_1, b_e_2))
    b_kl_1 = tl.where(m_rows, b_normalizers - LN_2 * (b_x_2 / b_e_2), 0.0)
    b_kl_2 = tl.where(m_rows, LN_2 * (b_x_1 / b_e_1) - b_normalizers, 0.0)
    _store_kl(p_kl + i_rows, 1.0 / b_e_1, b_x_1 / b_e_1, b_m_1, pad_a, i_rows)
    _store_kl(p_kl + 3 * pad_a + i_rows, 1.0 / b_e_2, b_x_2 / b_e_2, b_m_2, pad_a, i_rows)
    if p_rows is not None:
        tl.store(p_rows + i_rows, b_kl_1, mask=m_rows)
    return b_kl_1, b_kl_2


@triton.jit
def _store_kl(p_kl, b_inverse, b_mean, b_m, pad_a, i_rows):
    m_pad = i_rows < pad_a
    tl.store(p_kl, b_inverse, mask=m_pad)
    tl.store(p_kl + pad_a, b_mean, mask=m_pad)
    tl.store(p_kl + 2 * pad_a, b_m, mask=m_pad)


@triton.jit
def finalize_kernel(
    p_nt_partial,
    p_kl_partial,
    p_nt,
    p_kl,
    p_rows,
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
    pad_a,
    pad_b,
    nt_scale,
    kl_scale,
    kd_weight_1,
    kd_weight_2,
    NT: tl.constexpr,
    KL: tl.constexpr,
    NT_STATIC: tl.constexpr,
    KL_STATIC: tl.constexpr,
    EQUAL_TEMPERATURES: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    TENSOR_KD_TEMPERATURE_1: tl.constexpr,
    TENSOR_KD_TEMPERATURE_2: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row statistics to values, in one program and one fixed order. p_rows: values of every row (one loss only), or None.

    One program is enough: it reads at most 36 bytes a row, against 2 · M · D products a row in statistics_kernel.
    """
    if NT:
        nt_rate = LOG2_E / load_temperature(temperature, TENSOR_TEMPERATURE)
        pad = pad_a + pad_b
        b_nt_1 = tl.zeros([BLOCK], tl.float32)
        b_nt_2 = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pad_a + pad_b, BLOCK):
            b_nt_1 += _nt_values(
                p_nt_partial, p_nt, p_rows, rows_a, pad_a, pad_b, nt_rate, start, NT_STATIC, SPLITS, BLOCK
            )
            if KL:
                b_nt_2 += _nt_values(
                    p_nt_partial + 3 * SPLITS * pad, p_nt + 3 * pad, None, rows_a, pad_a, pad_b, nt_rate, start,
                    NT_STATIC, SPLITS, BLOCK,
                )  # fmt: skip
        nt_xent_1 = tl.sum(b_nt_1) * nt_scale
        tl.store(p_nt_xent_1, nt_xent_1)
    if KL:
        rate_1 = LOG2_E / load_temperature(kd_temperature_1, TENSOR_KD_TEMPERATURE_1)
        rate_2 = LOG2_E / load_temperature(kd_temperature_2, TENSOR_KD_TEMPERATURE_2)
        b_kl_1 = tl.zeros([BLOCK], tl.float32)
        b_kl_2 = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pad_a, BLOCK):
            b_row_kl_1, b_row_kl_2 = _kl_values(
                p_kl_partial, p_kl, p_rows, rows_a, pad_a, rate_1, rate_2, start, KL_STATIC,
                EQUAL_TEMPERATURES, SPLITS, BLOCK,
            )  # fmt: skip
            b_kl_1 += b_row_kl_1
            b_kl_2 += b_row_kl_2
        kl_1 = tl.sum(b_kl_1) * kl_scale
        tl.store(p_kl_1, kl_1)
        if NT:
            kl_2 = tl.sum(b_kl_2) * kl_scale
            nt_xent_2 = tl.sum(b_nt_2) * nt_scale
            loss_1 = nt_xent_1 + kd_weight_1 * kl_1
            loss_2 = nt_xent_2 + kd_weight_2 * kl_2
            tl.store(p_kl_2, kl_2)
            tl.store(p_nt_xent_2, nt_xent_2)
            tl.store(p_loss_1, loss_1)
            tl.store(p_loss_2, loss_2)
            tl.store(p_loss, loss_1 + loss_2)


# --------------------------------------------------------------------------------------------------- gradients


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
    EQUAL_TEMPERATURES: tl.constexpr,
):
    """w_ij of the KL; q = g/(T E), m and the teacher's mean Δ belong to queries and come broadcast along their axis."""
    if STATIC:
        b_e_other = tl.exp2(b_c_other * rate_other - rate_other)
        b_delta = _delta(b_c_own, b_c_other, rate_own, rate_other, EQUAL_TEMPERATURES)
        b_ratio = tl.exp2(b_delta)
        if IS_TEACHER:
            b_w = b_e_other * b_ratio * b_q_own * (b_delta - b_mean)
        else:
            b_w = b_e_other * (b_ratio * b_q_own - b_q_other)
    else:
        b_w = tl.exp2((b_c_own - b_m_own) * rate_own) * b_q_own
        if IS_TEACHER:
            b_delta = _delta(b_c_own, b_c_other, rate_own, rate_other, EQUAL_TEMPERATURES)
            b_w *= b_delta - b_mean
        else:
            b_w -= tl.exp2((b_c_other - b_m_other) * rate_other) * b_q_other
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
    """dẑ += w · ẑ_keys: the first BLOCK_D columns in registers, later chunks in the float32 scratch rows of this program.

    Weights go to the tensor cores in bfloat16 beside bfloat16 rows (same range as float32); beside float16 rows they
    would underflow at large N or overflow under a loss scale, so there both operands are widened for tf32.
    """
    b_w = _weights_like(b_w, p_z, INTERPRETED)
    b_acc += dot(b_w, _rows_for_weights(b_y), PRECISION, INTERPRETED)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            b_y_chunk = _rows_for_weights(load_tile(p_z, i_keys, i_column, WIDTH, BLOCK_D))
            i_columns = i_column + tl.arange(0, BLOCK_D)
            p_tile = p_scratch + i_rows.to(tl.int64)[:, None] * WIDTH + i_columns[None, :]
            tl.store(p_tile, tl.load(p_tile) + dot(b_w, b_y_chunk, PRECISION, INTERPRETED))
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
    EQUAL_TEMPERATURES: tl.constexpr,
    PER_ROW: tl.constexpr,
    TEMPERATURE_GRADIENT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_OTHER: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_D_OTHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The gradient of BLOCK_M rows of one view of one peer; the other peer (p_z_other, p_kl_other) is only read.

    Rows and keys count within their views, which begin at base_rows and base_keys of the buffer. One loop a view: a loop
    that held NT-Xent and both peers' KL for both views spilled more than 350 bytes a thread on sm_90.
    """
    i_local = row_start + tl.arange(0, BLOCK_M)
    i_rows = base_rows + i_local
    b_x = load_tile(p_z, i_rows, 0, WIDTH, BLOCK_D)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            tl.store(_scratch_tile(p_scratch, i_rows, i_column, WIDTH, BLOCK_D), tl.zeros([BLOCK_M, BLOCK_D], tl.float32))
        tl.debug_barrier()

    if NT:
        b_factor = _row_factor(p_factor_rows, i_local, rows, PER_ROW)
        b_u = nt_coefficient * b_factor * tl.load(p_nt + i_rows)
        b_max = b_u
        if not NT_STATIC:
            b_max = tl.load(p_nt + stride_nt + i_rows)
        for i_start in range(0, rows, BLOCK_N):
            i_keys = i_start + tl.arange(0, BLOCK_N)
            b_y = load_tile(p_z, base_rows + i_keys, 0, WIDTH, BLOCK_D)
            b_s = cosines(b_x, b_y, p_z, i_rows, base_rows + i_keys, WIDTH, BLOCK_D, PRECISION, INTERPRETED)
            b_factor_keys = _row_factor(p_factor_rows, i_keys, rows, PER_ROW)
            b_w = _nt_weights(
                b_s, p_nt, b_u, b_max, base_rows + i_keys, b_factor_keys, nt_coefficient, stride_nt, nt_rate, NT_STATIC
            )
            if (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N):
                b_w = tl.where(i_local[:, None] == i_keys[None, :], 0.0, b_w)
            if i_start + BLOCK_N > rows:
                b_w = tl.where((i_keys < rows)[None, :], b_w, 0.0)
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
        b_s = cosines(b_x, b_y, p_z, i_rows, i_keys, WIDTH, BLOCK_D, PRECISION, INTERPRETED)
        b_w = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if NT:
            b_factor_keys = _row_factor(p_factor_keys, i_local_keys, keys, PER_ROW)
            b_w = _nt_weights(b_s, p_nt, b_u, b_max, i_keys, b_factor_keys, nt_coefficient, stride_nt, nt_rate, NT_STATIC)
            if (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N):
                b_w = tl.where(i_local[:, None] == i_local_keys[None, :], 0.0, b_w)
        if KL:
            b_y_other = load_tile(p_z_other, i_keys, 0, WIDTH_OTHER, BLOCK_D_OTHER)
            b_s_other = cosines(
                b_x_other, b_y_other, p_z_other, i_rows, i_keys, WIDTH_OTHER, BLOCK_D_OTHER, PRECISION, INTERPRETED
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
                IS_TEACHER, KL_STATIC, EQUAL_TEMPERATURES,
            )  # fmt: skip
            if TEMPERATURE_GRADIENT:
                b_kl_inner += tl.sum(tl.where((i_local_keys < keys)[None, :], b_kl_w, 0.0) * b_s, 1)
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
        b_pull += _row_factor(p_factor_keys, i_local, rows, PER_ROW) * tl.load(p_nt + 2 * stride_nt + base_keys + i_local)
        b_pull *= nt_coefficient
        b_acc -= b_pull[:, None] * load_tile(p_z, base_keys + i_local, 0, WIDTH, BLOCK_D).to(tl.float32)
    b_inner = tl.sum(b_acc * b_x.to(tl.float32), 1)
    if WIDTH > BLOCK_D:
        for i_column in range(BLOCK_D, WIDTH, BLOCK_D):
            p_tile = _scratch_tile(p_scratch, i_rows, i_column, WIDTH, BLOCK_D)
            b_chunk = tl.load(p_tile)
            if NT:
                b_positive = load_tile(p_z, base_keys + i_local, i_column, WIDTH, BLOCK_D).to(tl.float32)
                b_chunk -= b_pull[:, None] * b_positive
                tl.store(p_tile, b_chunk)
            b_inner += tl.sum(b_chunk * load_tile(p_z, i_rows, i_column, WIDTH, BLOCK_D).to(tl.float32), 1)
        tl.debug_barrier()
    if TEMPERATURE_GRADIENT:
        tl.store(p_inner + i_rows, b_inner - b_kl_inner)
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
    EQUAL_TEMPERATURES: tl.constexpr,
    PER_ROW: tl.constexpr,
    TEMPERATURE_GRADIENT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_OTHER: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_D_OTHER: tl.constexpr,
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
            p_z, p_z_other, p_inverse_norm, p_gradient_a, p_scratch, p_inner, p_nt, p_kl, p_kl_other, p_factor, p_factor_b,
            nt_coefficient, kl_coefficient, nt_rate, rate, rate_other, i_block * BLOCK_M, 0, pad_a, rows_a, rows_b,
            pad_a + pad_b, D,
            stride_nt, stride_kl, True, NT, KL, IS_TEACHER, IS_FIRST, NT_STATIC, KL_STATIC, EQUAL_TEMPERATURES, PER_ROW,
            TEMPERATURE_GRADIENT, WIDTH, WIDTH_OTHER, BLOCK_D, BLOCK_D_OTHER, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
        )  # fmt: skip
    else:
        _gradient_rows(
            p_z, p_z_other, p_inverse_norm, p_gradient_b, p_scratch, p_inner, p_nt, p_kl, p_kl_other, p_factor_b, p_factor,
            nt_coefficient, kl_coefficient, nt_rate, rate, rate_other, (i_block - blocks_a) * BLOCK_M, pad_a, 0, rows_b, rows_a,
            pad_a + pad_b, D, stride_nt, stride_kl, False, NT, KL, IS_TEACHER, IS_FIRST, NT_STATIC, KL_STATIC,
            EQUAL_TEMPERATURES, PER_ROW, TEMPERATURE_GRADIENT, WIDTH, WIDTH_OTHER, BLOCK_D, BLOCK_D_OTHER, BLOCK_M, BLOCK_N,
            PRECISION, INTERPRETED,
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
    EQUAL_TEMPERATURES: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    TENSOR_KD_TEMPERATURE_1: tl.constexpr,
    TENSOR_KD_TEMPERATURE_2: tl.constexpr,
    PER_ROW: tl.constexpr,
    TEMPERATURE_GRADIENT: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    BLOCK_D_1: tl.constexpr,
    BLOCK_D_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Gradients of every row. Grid: (row blocks of views a and b, peers that get a gradient).

    p_loss .. p_kl_2: upstream gradients of the 0-d outputs, None where there is none; p_factor: upstream gradients of rows
    when PER_ROW. PEER_2: "student", "teacher", or "none" (peer 2 is absent or constant).
    p_inner: [peers, (NT-Xent, KL), pad_a + pad_b], ⟨dẑ, ẑ⟩ of every row, written when TEMPERATURE_GRADIENT.
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
            NT, KL, False, True, NT_STATIC, KL_STATIC, EQUAL_TEMPERATURES, PER_ROW, TEMPERATURE_GRADIENT,
            WIDTH_1, WIDTH_2, BLOCK_D_1, BLOCK_D_2, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
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
            pad, pad_a, NT, KL, PEER_2 == "teacher", False, NT_STATIC, KL_STATIC, EQUAL_TEMPERATURES, PER_ROW,
            TEMPERATURE_GRADIENT, WIDTH_2, WIDTH_1, BLOCK_D_2, BLOCK_D_1, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
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
    """Euler's rule over p_inner, in one program.

    p_kd_gradient_1 and _2: of the temperature that makes each peer's own distribution; where both peers are students they
    share one, and the first takes the sum.
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

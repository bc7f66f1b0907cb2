"""Forward of NT-Xent, similarity KL and the whole DoGo loss: row statistics, then values. Backward: dogo_backward.py.

Peer p has normalised rows ẑ = [â; b̂] (normalize.py), 2N of them for NT-Xent, R queries and C keys for the KL;
s_ij = ⟨ẑ_i, ẑ_j⟩, c_ij = ⟨â_i, b̂_j⟩; float32, exponentials in base 2 (rate = log₂ e / temperature).

    NT-Xent     r_i = Σ_{j≠i,pos(i)} exp((s_ij − m_i)/τ)          nt_i = log(1 + r_i exp((m_i − s_{i,pos(i)})/τ))
    KL          E_p,i = Σ_j exp(x_p,ij),  x_p,ij = (c_p,ij − m_p,i)/T_p          Δ_ij = x_1,ij − x_2,ij
                X_1,i = Σ_j exp(x_1,ij) Δ_ij                      KL(P₁ ‖ P₂)_i = X_1/E_1 − log(E_1/E_2)
                X_2,i = Σ_j exp(x_2,ij) Δ_ij                      KL(P₂ ‖ P₁)_i = log(E_1/E_2) − X_2/E_2

The shift m is the constant 1 (STATIC: a cosine cannot exceed 1; needs 2/T ≤ 60, so that exp(−2/T), and 1 over it times
a loss scale, stay normal numbers; for the KL also equal temperatures) or the running maximum of the row. It is
subtracted from cosines before the division by the temperature: at T = 0.02 this keeps the exponent of a confident
positive exact, where s/T − 1/T would lose 2e-6. Δ is anchored at the maxima too: at temperatures 10 and 0.01 both
terms of the KL would else be near 100 and cancel. When STATIC, exp(x_1) is exp(x_2) · exp(Δ), so that the rounding of
nearly equal peers cancels: equal peers give exactly 0.

Legend of the statistics (float32). The statistics kernel writes, for every column split,
    nt_partial [PEERS, (r, m, s_pos), SPLITS, pad_a + pad_b]      kl_partial [2, (E, X, m), SPLITS, pad_a]
and the finalize kernel merges the splits into what the backward pass reads, finite in padding rows too:
    nt [PEERS, (1/l, m, q), pad_a + pad_b]                        kl [2, (1/E, X/E, m), pad_a]
where l = r + exp((s_pos − m)/τ) includes the positive and q = r/l = 1 − p_pos is free of cancellation.

Memory: 3 to 9 numbers a row and split. Nothing of size N × N; no atomics: every row has one owner and one fixed order
of sums, so two runs give the same bits.
"""

import triton
import triton.language as tl

from .tiles import LN_2, LOG2_E, cosines, load_temperature, load_tile

# Below every cosine, rounding included: the shift of a row that has seen no key yet.
NO_KEY_YET = tl.constexpr(-2.0)
# In place of the cosine of a pair that does not count: its exponential is 0, and differences of two stay finite.
LEFT_OUT = tl.constexpr(-1e30)


@triton.jit
def _add_to_row_sum(b_s, b_sum, b_max, rate, STATIC: tl.constexpr):
    """Add the exponentials of a tile of cosines (LEFT_OUT where they do not count) to the row sums; rate = log₂ e /
    τ."""
    if STATIC:
        b_sum += tl.sum(tl.exp2(b_s * rate - rate), 1)
    else:
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_sum = b_sum * tl.exp2((b_max - b_new_max) * rate) + tl.sum(tl.exp2((b_s - b_new_max[:, None]) * rate), 1)
        b_max = b_new_max
    return b_sum, b_max


@triton.jit
def _add_to_kl_sums(b_c_1, b_c_2, b_e_1, b_x_1, b_m_1, b_e_2, b_x_2, b_m_2, rate_1, rate_2, STATIC: tl.constexpr):
    """Add a tile of cosines (LEFT_OUT where they do not count) to (E, X, m) of both peers."""
    if STATIC:
        b_exp_2 = tl.exp2(b_c_2 * rate_2 - rate_2)
        b_delta = (b_c_1 - b_c_2) * rate_1
        b_exp_1 = b_exp_2 * tl.exp2(b_delta)
    else:
        b_new_m_1 = tl.maximum(b_m_1, tl.max(b_c_1, 1))
        b_new_m_2 = tl.maximum(b_m_2, tl.max(b_c_2, 1))
        b_moved_1 = (b_m_1 - b_new_m_1) * rate_1
        b_moved_2 = (b_m_2 - b_new_m_2) * rate_2
        b_x_1 = (b_x_1 + b_e_1 * (b_moved_1 - b_moved_2)) * tl.exp2(b_moved_1)
        b_x_2 = (b_x_2 + b_e_2 * (b_moved_1 - b_moved_2)) * tl.exp2(b_moved_2)
        b_e_1 *= tl.exp2(b_moved_1)
        b_e_2 *= tl.exp2(b_moved_2)
        b_m_1 = b_new_m_1
        b_m_2 = b_new_m_2
        b_logit_1 = (b_c_1 - b_m_1[:, None]) * rate_1
        b_logit_2 = (b_c_2 - b_m_2[:, None]) * rate_2
        b_exp_1 = tl.exp2(b_logit_1)
        b_exp_2 = tl.exp2(b_logit_2)
        b_delta = b_logit_1 - b_logit_2
    b_e_1 += tl.sum(b_exp_1, 1)
    b_e_2 += tl.sum(b_exp_2, 1)
    b_x_1 += tl.sum(b_exp_1 * b_delta, 1)
    b_x_2 += tl.sum(b_exp_2 * b_delta, 1)
    return b_e_1, b_x_1, b_m_1, b_e_2, b_x_2, b_m_2


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
    """Row sums of one peer over keys start .. stop of one view; in its own view a row leaves itself out, in the other
    its positive, whose cosine is returned. row_start counts within the rows' view, which begins at base_rows of the
    buffer. Masks cost nothing in the tiles, nearly all, that are neither on the diagonal nor at the ragged end."""
    i_rows = row_start + tl.arange(0, BLOCK_M)
    for i_start in range(start, stop, BLOCK_N):
        i_keys = i_start + tl.arange(0, BLOCK_N)
        b_y = load_tile(p_z, base_keys + i_keys, 0, WIDTH, BLOCK_D)
        b_s = cosines(
            b_x, b_y, p_z, base_rows + i_rows, base_keys + i_keys, WIDTH, BLOCK_D, BLOCK_D, PRECISION, INTERPRETED
        )
        on_diagonal = (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N)
        if on_diagonal:
            m_diagonal = i_rows[:, None] == i_keys[None, :]
            if not SAME_VIEW:
                b_positive += tl.sum(tl.where(m_diagonal, b_s, 0.0), 1)
            b_s = tl.where(m_diagonal, LEFT_OUT, b_s)
        if i_start + BLOCK_N > keys:
            b_s = tl.where((i_keys < keys)[None, :], b_s, LEFT_OUT)
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
        b_c_1 = cosines(b_x_1, b_y_1, p_z_1, i_rows, i_buffer, WIDTH_1, BLOCK_D_1, BLOCK_D_1, PRECISION, INTERPRETED)
        b_y_2 = load_tile(p_z_2, i_buffer, 0, WIDTH_2, BLOCK_D_2)
        b_c_2 = cosines(b_x_2, b_y_2, p_z_2, i_rows, i_buffer, WIDTH_2, BLOCK_D_2, BLOCK_D_2, PRECISION, INTERPRETED)
        if i_start + BLOCK_N > keys:
            m_keys = (i_keys < keys)[None, :]
            b_c_1 = tl.where(m_keys, b_c_1, LEFT_OUT)
            b_c_2 = tl.where(m_keys, b_c_2, LEFT_OUT)
        if NT:
            b_s_1 = b_c_1
            b_s_2 = b_c_2
            if (i_start < row_start + BLOCK_M) & (row_start < i_start + BLOCK_N):
                m_diagonal = i_rows[:, None] == i_keys[None, :]
                b_positive_1 += tl.sum(tl.where(m_diagonal, b_c_1, 0.0), 1)
                b_positive_2 += tl.sum(tl.where(m_diagonal, b_c_2, 0.0), 1)
                b_s_1 = tl.where(m_diagonal, LEFT_OUT, b_c_1)
                b_s_2 = tl.where(m_diagonal, LEFT_OUT, b_c_2)
            b_sum_1, b_max_1 = _add_to_row_sum(b_s_1, b_sum_1, b_max_1, nt_rate, NT_STATIC)
            b_sum_2, b_max_2 = _add_to_row_sum(b_s_2, b_sum_2, b_max_2, nt_rate, NT_STATIC)
        b_e_1, b_x_sum_1, b_m_1, b_e_2, b_x_sum_2, b_m_2 = _add_to_kl_sums(
            b_c_1, b_c_2, b_e_1, b_x_sum_1, b_m_1, b_e_2, b_x_sum_2, b_m_2, rate_1, rate_2, KL_STATIC
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
        NT, NT_STATIC, KL_STATIC, WIDTH_1, WIDTH_2, BLOCK_D_1, BLOCK_D_2, BLOCK_M, BLOCK_N,
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
                nt_rate, rate_1, rate_2, NT, NT_STATIC, KL_STATIC,
                WIDTH_1, WIDTH_2, BLOCK_D_1, BLOCK_D_2, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
            )  # fmt: skip
    else:
        _nt_rows(
            p_z_1, p_nt, row_start, base_rows, pad_a - base_rows, rows_b, start, stop, stride_nt, nt_rate,
            NT_STATIC, WIDTH_1, BLOCK_D_1, BLOCK_M, BLOCK_N, PRECISION, INTERPRETED,
        )  # fmt: skip


@triton.jit
def _merged_max(p_max, m_rows, stride, STATIC: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """The shift of rows over the column splits."""
    b_max = tl.full([BLOCK], 1.0, tl.float32)
    if not STATIC:
        b_max = tl.load(p_max, mask=m_rows, other=1.0)
        for i_split in range(1, SPLITS):
            b_max = tl.maximum(b_max, tl.load(p_max + i_split * stride, mask=m_rows, other=1.0))
    return b_max


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
    """NT-Xent of rows start .. start + BLOCK of the padded buffer (0 for padding), written to p_rows [2N] unless
    None."""
    i_rows = start + tl.arange(0, BLOCK)
    in_b = i_rows >= pad_a
    pad = pad_a + pad_b
    m_rows = tl.where(in_b, i_rows - pad_a, i_rows) < rows
    p_sum = p_partial + i_rows
    p_max = p_sum + SPLITS * pad
    b_max = _merged_max(p_max, m_rows, pad, STATIC, SPLITS, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)
    b_positive = tl.zeros([BLOCK], tl.float32)
    for i_split in range(0, SPLITS):
        b_part = tl.load(p_sum + i_split * pad, mask=m_rows, other=1.0)
        if not STATIC:
            b_part *= tl.exp2((tl.load(p_max + i_split * pad, mask=m_rows, other=1.0) - b_max) * rate)
        b_sum += b_part
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
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """KL(P₂ ‖ P₁) and KL(P₁ ‖ P₂) of rows start .. start + BLOCK (0 for padding); the first also to p_rows [R] unless
    None."""
    i_rows = start + tl.arange(0, BLOCK)
    m_rows = i_rows < rows
    stride = SPLITS * pad_a
    p_1 = p_partial + i_rows
    p_2 = p_1 + 3 * stride
    b_m_1 = _merged_max(p_1 + 2 * stride, m_rows, pad_a, STATIC, SPLITS, BLOCK)
    b_m_2 = _merged_max(p_2 + 2 * stride, m_rows, pad_a, STATIC, SPLITS, BLOCK)
    b_e_1 = tl.zeros([BLOCK], tl.float32)
    b_x_1 = tl.zeros([BLOCK], tl.float32)
    b_e_2 = tl.zeros([BLOCK], tl.float32)
    b_x_2 = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, SPLITS):
        b_moved_1 = tl.zeros([BLOCK], tl.float32)
        b_moved_2 = tl.zeros([BLOCK], tl.float32)
        if not STATIC:
            b_moved_1 = (tl.load(p_1 + 2 * stride, mask=m_rows, other=1.0) - b_m_1) * rate_1
            b_moved_2 = (tl.load(p_2 + 2 * stride, mask=m_rows, other=1.0) - b_m_2) * rate_2
        b_part_1 = tl.load(p_1, mask=m_rows, other=1.0)
        b_part_2 = tl.load(p_2, mask=m_rows, other=1.0)
        b_e_1 += b_part_1 * tl.exp2(b_moved_1)
        b_e_2 += b_part_2 * tl.exp2(b_moved_2)
        b_part_1 = tl.load(p_1 + stride, mask=m_rows, other=0.0) + b_part_1 * (b_moved_1 - b_moved_2)
        b_part_2 = tl.load(p_2 + stride, mask=m_rows, other=0.0) + b_part_2 * (b_moved_1 - b_moved_2)
        b_x_1 += b_part_1 * tl.exp2(b_moved_1)
        b_x_2 += b_part_2 * tl.exp2(b_moved_2)
        p_1 += pad_a
        p_2 += pad_a
    # tl.log, not tl.log2: the hardware's log2 is off by 2e-7 near 1, which is where nearly equal peers are
    b_normalizers = tl.log(tl.div_rn(b_e_1, b_e_2))
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
    TENSOR_TEMPERATURE: tl.constexpr,
    TENSOR_KD_TEMPERATURE_1: tl.constexpr,
    TENSOR_KD_TEMPERATURE_2: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row statistics to values, in one program and one fixed order. p_rows: values of every row (one loss only), or
    None.

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
                SPLITS, BLOCK,
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

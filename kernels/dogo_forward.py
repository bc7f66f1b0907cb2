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

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import LN_2, LOG2_E, cosines, load_temperature, load_tile

# Below every cosine, rounding included: the shift of a row that has seen no key yet.
NO_KEY_YET = tl.constexpr(-2.0)
# In place of the cosine of a pair that does not count: its exponential is 0, and differences of two stay finite.
LEFT_OUT = tl.constexpr(-1e30)


class RowBlock(NamedTuple):
    """The rows of a program: where they start in their view, and where that begins in the buffer."""

    start: Any
    base: Any


class Span(NamedTuple):
    """Keys start .. stop of a view of so many."""

    start: Any
    stop: Any
    keys: Any


class Partials(NamedTuple):
    """A split's statistics of NT-Xent and of the KL, and how far the three numbers of a row lie apart."""

    p_nt: Any
    p_kl: Any
    stride_nt: Any
    stride_kl: Any


class Rates(NamedTuple):
    """log₂ e over τ, and over T of each peer."""

    nt: Any
    kl_1: Any
    kl_2: Any


class RowSum(NamedTuple):
    """(r, m, s_pos) of NT-Xent, [BLOCK_M] each."""

    b_sum: Any
    b_max: Any
    b_positive: Any


class KLSum(NamedTuple):
    """(E, X, m) of one peer, [BLOCK_M] each."""

    b_e: Any
    b_x: Any
    b_m: Any


@triton.jit
def _no_sum(BLOCK_M: tl.constexpr):
    """(0, NO_KEY_YET, 0): of no keys."""
    b_zeros = tl.zeros([BLOCK_M], tl.float32)
    return RowSum(b_zeros, tl.full([BLOCK_M], NO_KEY_YET, tl.float32), b_zeros)


@triton.jit
def _add_to_row_sum(b_s, row_sum, rate, STATIC: tl.constexpr):
    """Add the exponentials of a tile of cosines (LEFT_OUT where they do not count) to the row sums; rate = log₂ e /
    τ."""
    b_sum, b_max, b_positive = row_sum
    if STATIC:
        b_sum += tl.sum(tl.exp2(b_s * rate - rate), 1)
    else:
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_sum = b_sum * tl.exp2((b_max - b_new_max) * rate) + tl.sum(tl.exp2((b_s - b_new_max[:, None]) * rate), 1)
        b_max = b_new_max
    return RowSum(b_sum, b_max, b_positive)


@triton.jit
def _add_to_kl_sums(b_c_1, b_c_2, kl_1, kl_2, rates, STATIC: tl.constexpr):
    """Add a tile of cosines (LEFT_OUT where they do not count) to (E, X, m) of both peers."""
    b_e_1, b_x_1, b_m_1 = kl_1
    b_e_2, b_x_2, b_m_2 = kl_2
    if STATIC:
        b_exp_2 = tl.exp2(b_c_2 * rates.kl_2 - rates.kl_2)
        b_delta = (b_c_1 - b_c_2) * rates.kl_1
        b_exp_1 = b_exp_2 * tl.exp2(b_delta)
    else:
        b_new_m_1 = tl.maximum(b_m_1, tl.max(b_c_1, 1))
        b_new_m_2 = tl.maximum(b_m_2, tl.max(b_c_2, 1))
        b_moved_1 = (b_m_1 - b_new_m_1) * rates.kl_1
        b_moved_2 = (b_m_2 - b_new_m_2) * rates.kl_2
        b_x_1 = (b_x_1 + b_e_1 * (b_moved_1 - b_moved_2)) * tl.exp2(b_moved_1)
        b_x_2 = (b_x_2 + b_e_2 * (b_moved_1 - b_moved_2)) * tl.exp2(b_moved_2)
        b_e_1 *= tl.exp2(b_moved_1)
        b_e_2 *= tl.exp2(b_moved_2)
        b_m_1 = b_new_m_1
        b_m_2 = b_new_m_2
        b_logit_1 = (b_c_1 - b_m_1[:, None]) * rates.kl_1
        b_logit_2 = (b_c_2 - b_m_2[:, None]) * rates.kl_2
        b_exp_1 = tl.exp2(b_logit_1)
        b_exp_2 = tl.exp2(b_logit_2)
        b_delta = b_logit_1 - b_logit_2
    b_e_1 += tl.sum(b_exp_1, 1)
    b_e_2 += tl.sum(b_exp_2, 1)
    b_x_1 += tl.sum(b_exp_1 * b_delta, 1)
    b_x_2 += tl.sum(b_exp_2 * b_delta, 1)
    return KLSum(b_e_1, b_x_1, b_m_1), KLSum(b_e_2, b_x_2, b_m_2)


@triton.jit
def _nt_over_keys(
    b_x,
    p_z,
    block,
    base_keys,
    span,
    row_sum,
    rate,
    SAME_VIEW: tl.constexpr,
    STATIC: tl.constexpr,
    columns: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Row sums of one peer over a span of keys of one view; in its own view a row leaves itself out, in the other its
    positive, whose cosine is kept. Masks cost nothing in the tiles, nearly all, that are neither on the diagonal nor at
    the ragged end."""
    i_rows = block.start + tl.arange(0, tile.BLOCK_M)
    for i_start in range(span.start, span.stop, tile.BLOCK_N):
        i_keys = i_start + tl.arange(0, tile.BLOCK_N)
        b_y = load_tile(p_z, base_keys + i_keys, 0, columns.WIDTH, columns.BLOCK_D)
        b_s = cosines(b_x, b_y, p_z, block.base + i_rows, base_keys + i_keys, columns, arithmetic)
        on_diagonal = (i_start < block.start + tile.BLOCK_M) & (block.start < i_start + tile.BLOCK_N)
        if on_diagonal:
            m_diagonal = i_rows[:, None] == i_keys[None, :]
            if not SAME_VIEW:
                row_sum = _with_positive(row_sum, b_s, m_diagonal)
            b_s = tl.where(m_diagonal, LEFT_OUT, b_s)
        if i_start + tile.BLOCK_N > span.keys:
            b_s = tl.where((i_keys < span.keys)[None, :], b_s, LEFT_OUT)
        row_sum = _add_to_row_sum(b_s, row_sum, rate, STATIC)
    return row_sum


@triton.jit
def _with_positive(row_sum, b_s, m_diagonal):
    """The cosines of positives, which stand on the diagonal, added."""
    b_positive = row_sum.b_positive + tl.sum(tl.where(m_diagonal, b_s, 0.0), 1)
    return RowSum(row_sum.b_sum, row_sum.b_max, b_positive)


@triton.jit
def _joint_over_keys(
    b_x,
    p_z,
    block,
    base_keys,
    span,
    sums,
    rates,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    losses: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Cross-view tiles of both peers held together: the KL sums, and the same tiles' share of both NT-Xent row sums."""
    BLOCK_M: tl.constexpr = tile.BLOCK_M
    i_rows = block.start + tl.arange(0, BLOCK_M)
    b_x_1, b_x_2 = b_x
    p_z_1, p_z_2 = p_z
    sum_1, sum_2 = sums
    b_zeros = tl.zeros([BLOCK_M], tl.float32)
    b_none = tl.full([BLOCK_M], NO_KEY_YET, tl.float32)
    kl_1 = KLSum(b_zeros, b_zeros, b_none)
    kl_2 = KLSum(b_zeros, b_zeros, b_none)
    for i_start in range(span.start, span.stop, tile.BLOCK_N):
        i_keys = i_start + tl.arange(0, tile.BLOCK_N)
        i_buffer = base_keys + i_keys
        b_y_1 = load_tile(p_z_1, i_buffer, 0, columns_1.WIDTH, columns_1.BLOCK_D)
        b_c_1 = cosines(b_x_1, b_y_1, p_z_1, i_rows, i_buffer, columns_1, arithmetic)
        b_y_2 = load_tile(p_z_2, i_buffer, 0, columns_2.WIDTH, columns_2.BLOCK_D)
        b_c_2 = cosines(b_x_2, b_y_2, p_z_2, i_rows, i_buffer, columns_2, arithmetic)
        if i_start + tile.BLOCK_N > span.keys:
            m_keys = (i_keys < span.keys)[None, :]
            b_c_1 = tl.where(m_keys, b_c_1, LEFT_OUT)
            b_c_2 = tl.where(m_keys, b_c_2, LEFT_OUT)
        if losses.NT:
            b_s_1 = b_c_1
            b_s_2 = b_c_2
            if (i_start < block.start + BLOCK_M) & (block.start < i_start + tile.BLOCK_N):
                m_diagonal = i_rows[:, None] == i_keys[None, :]
                sum_1 = _with_positive(sum_1, b_c_1, m_diagonal)
                sum_2 = _with_positive(sum_2, b_c_2, m_diagonal)
                b_s_1 = tl.where(m_diagonal, LEFT_OUT, b_c_1)
                b_s_2 = tl.where(m_diagonal, LEFT_OUT, b_c_2)
            sum_1 = _add_to_row_sum(b_s_1, sum_1, rates.nt, losses.NT_STATIC)
            sum_2 = _add_to_row_sum(b_s_2, sum_2, rates.nt, losses.NT_STATIC)
        kl_1, kl_2 = _add_to_kl_sums(b_c_1, b_c_2, kl_1, kl_2, rates, losses.KL_STATIC)
    return sum_1, sum_2, kl_1, kl_2


@triton.jit
def _store_three(p_statistics, three, stride):
    tl.store(p_statistics, three[0])
    tl.store(p_statistics + stride, three[1])
    tl.store(p_statistics + 2 * stride, three[2])


@triton.jit
def _nt_rows(
    p_z,
    p_nt,
    block,
    base_others,
    span,
    stride,
    rate,
    STATIC: tl.constexpr,
    columns: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """NT-Xent statistics of a row block of one peer: its own view, then the other."""
    i_rows = block.base + block.start + tl.arange(0, tile.BLOCK_M)
    b_x = load_tile(p_z, i_rows, 0, columns.WIDTH, columns.BLOCK_D)
    own = _nt_over_keys(
        b_x, p_z, block, block.base, span, _no_sum(tile.BLOCK_M), rate, True, STATIC, columns, tile, arithmetic
    )
    row_sum = _nt_over_keys(b_x, p_z, block, base_others, span, own, rate, False, STATIC, columns, tile, arithmetic)
    _store_three(p_nt + i_rows, row_sum, stride)


@triton.jit
def _joint_rows(
    p_z,
    partials,
    block,
    base_keys,
    span,
    rates,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    losses: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """KL statistics of a row block of view a and, when NT, both peers' NT-Xent statistics of the same rows."""
    STATIC: tl.constexpr = losses.NT_STATIC
    i_rows = block.start + tl.arange(0, tile.BLOCK_M)
    p_z_1, p_z_2 = p_z
    b_x_1 = load_tile(p_z_1, i_rows, 0, columns_1.WIDTH, columns_1.BLOCK_D)
    b_x_2 = load_tile(p_z_2, i_rows, 0, columns_2.WIDTH, columns_2.BLOCK_D)
    sum_1 = _no_sum(tile.BLOCK_M)
    sum_2 = _no_sum(tile.BLOCK_M)
    if losses.NT:
        sum_1 = _nt_over_keys(b_x_1, p_z_1, block, 0, span, sum_1, rates.nt, True, STATIC, columns_1, tile, arithmetic)
        sum_2 = _nt_over_keys(b_x_2, p_z_2, block, 0, span, sum_2, rates.nt, True, STATIC, columns_2, tile, arithmetic)
    sum_1, sum_2, kl_1, kl_2 = _joint_over_keys(
        (b_x_1, b_x_2), p_z, block, base_keys, span, (sum_1, sum_2), rates, columns_1, columns_2, losses, tile,
        arithmetic,
    )  # fmt: skip
    p_nt, p_kl, stride_nt, stride_kl = partials
    _store_three(p_kl + i_rows, kl_1, stride_kl)
    _store_three(p_kl + 3 * stride_kl + i_rows, kl_2, stride_kl)
    if losses.NT:
        _store_three(p_nt + i_rows, sum_1, stride_nt)
        _store_three(p_nt + 3 * stride_nt + i_rows, sum_2, stride_nt)


@triton.jit
def statistics_kernel(
    p_z,
    p_nt,
    p_kl,
    temperatures,
    sizes,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    losses: tl.constexpr,
    tile: tl.constexpr,
    SPLITS: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Row statistics. Grid: (row blocks of view a, then of view b when NT; SPLITS). p_z: of each peer, two when
    KL, else one.

    A program owns BLOCK_M rows of one view and walks its split of the keys, rows_b in each view (NT-Xent is square).
    """
    rows_a, rows_b, pad_a, pad_b = sizes
    i_split = tl.program_id(1)
    blocks_a = tl.cdiv(rows_a, tile.BLOCK_M)
    in_b = tl.program_id(0) >= blocks_a
    base_rows = tl.where(in_b, pad_a, 0)
    row_start = (tl.program_id(0) - tl.where(in_b, blocks_a, 0)) * tile.BLOCK_M
    per_split = tl.cdiv(tl.cdiv(rows_b, tile.BLOCK_N), SPLITS) * tile.BLOCK_N
    start = i_split * per_split
    span = Span(start, tl.minimum(start + per_split, rows_b), rows_b)
    stride_nt = SPLITS * (pad_a + pad_b)
    stride_kl = SPLITS * pad_a
    nt_rate = 0.0
    STATIC: tl.constexpr = losses.NT_STATIC
    if losses.NT:
        nt_rate = LOG2_E / load_temperature(temperatures.temperature)
        p_nt += i_split * (pad_a + pad_b)
    if losses.KL:
        rate_1 = LOG2_E / load_temperature(temperatures.kd_temperature_1)
        rate_2 = LOG2_E / load_temperature(temperatures.kd_temperature_2)
        if in_b:
            if losses.NT:
                block = RowBlock(row_start, pad_a)
                _nt_rows(
                    p_z[0], p_nt, block, 0, span, stride_nt, nt_rate, STATIC, columns_1, tile, arithmetic,
                )  # fmt: skip
                _nt_rows(
                    p_z[1], p_nt + 3 * stride_nt, block, 0, span, stride_nt, nt_rate, STATIC, columns_2, tile,
                    arithmetic,
                )  # fmt: skip
        else:
            _joint_rows(
                p_z, Partials(p_nt, p_kl + i_split * pad_a, stride_nt, stride_kl), RowBlock(row_start, 0), pad_a, span,
                Rates(nt_rate, rate_1, rate_2), columns_1, columns_2, losses, tile, arithmetic,
            )  # fmt: skip
    else:
        block = RowBlock(row_start, base_rows)
        _nt_rows(p_z[0], p_nt, block, pad_a - base_rows, span, stride_nt, nt_rate, STATIC, columns_1, tile, arithmetic)


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
    p_partial, p_nt, p_rows, sizes, rate, start, STATIC: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """NT-Xent of rows start .. start + BLOCK of the padded buffer (0 for padding), written to p_rows [2N] unless
    None."""
    rows, _, pad_a, pad_b = sizes
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
    p_partial, p_kl, p_rows, sizes, rates, start, STATIC: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """KL(P₂ ‖ P₁) and KL(P₁ ‖ P₂) of rows start .. start + BLOCK (0 for padding); the first also to p_rows [R] unless
    None."""
    rows, _, pad_a, _ = sizes
    rate_1, rate_2 = rates
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
    _store_kl(p_kl + i_rows, KLSum(1.0 / b_e_1, b_x_1 / b_e_1, b_m_1), pad_a, i_rows)
    _store_kl(p_kl + 3 * pad_a + i_rows, KLSum(1.0 / b_e_2, b_x_2 / b_e_2, b_m_2), pad_a, i_rows)
    if p_rows is not None:
        tl.store(p_rows + i_rows, b_kl_1, mask=m_rows)
    return b_kl_1, b_kl_2


@triton.jit
def _store_kl(p_kl, three, pad_a, i_rows):
    m_pad = i_rows < pad_a
    tl.store(p_kl, three.b_e, mask=m_pad)
    tl.store(p_kl + pad_a, three.b_x, mask=m_pad)
    tl.store(p_kl + 2 * pad_a, three.b_m, mask=m_pad)


@triton.jit
def finalize_kernel(
    p_nt_partial,
    p_kl_partial,
    p_nt,
    p_kl,
    p_rows,
    values,
    temperatures,
    sizes,
    scales,
    losses: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row statistics to values, in one program and one fixed order. p_rows: values of every row (one loss only), or
    None.

    One program is enough: it reads at most 36 bytes a row, against 2 · M · D products a row in statistics_kernel.
    """
    pad_a = sizes.pad_a
    pad = pad_a + sizes.pad_b
    STATIC: tl.constexpr = losses.NT_STATIC
    if losses.NT:
        nt_rate = LOG2_E / load_temperature(temperatures.temperature)
        b_nt_1 = tl.zeros([BLOCK], tl.float32)
        b_nt_2 = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pad, BLOCK):
            b_nt_1 += _nt_values(p_nt_partial, p_nt, p_rows, sizes, nt_rate, start, STATIC, SPLITS, BLOCK)
            if losses.KL:
                p_second = p_nt_partial + 3 * SPLITS * pad
                b_nt_2 += _nt_values(p_second, p_nt + 3 * pad, None, sizes, nt_rate, start, STATIC, SPLITS, BLOCK)
        nt_xent_1 = tl.sum(b_nt_1) * scales.nt_scale
        tl.store(values.p_nt_xent_1, nt_xent_1)
    if losses.KL:
        rate_1 = LOG2_E / load_temperature(temperatures.kd_temperature_1)
        rate_2 = LOG2_E / load_temperature(temperatures.kd_temperature_2)
        b_kl_1 = tl.zeros([BLOCK], tl.float32)
        b_kl_2 = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pad_a, BLOCK):
            b_row_kl_1, b_row_kl_2 = _kl_values(
                p_kl_partial, p_kl, p_rows, sizes, (rate_1, rate_2), start, losses.KL_STATIC, SPLITS, BLOCK
            )
            b_kl_1 += b_row_kl_1
            b_kl_2 += b_row_kl_2
        kl_1 = tl.sum(b_kl_1) * scales.kl_scale
        tl.store(values.p_kl_1, kl_1)
        if losses.NT:
            kl_2 = tl.sum(b_kl_2) * scales.kl_scale
            nt_xent_2 = tl.sum(b_nt_2) * scales.nt_scale
            loss_1 = nt_xent_1 + scales.kd_weight_1 * kl_1
            loss_2 = nt_xent_2 + scales.kd_weight_2 * kl_2
            tl.store(values.p_kl_2, kl_2)
            tl.store(values.p_nt_xent_2, nt_xent_2)
            tl.store(values.p_loss_1, loss_1)
            tl.store(values.p_loss_2, loss_2)
            tl.store(values.p_loss, loss_1 + loss_2)

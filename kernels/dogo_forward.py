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

Two divisions of the work; the table of tiles has which (configurations.py):

    by rows       a program owns rows of one view and walks their keys in both views. S = Sᵀ is made twice.
    by squares    a program owns rows and keys of one square, of a view with itself or of view a with view b, and adds
                  up the exponentials of NT-Xent over rows *and* columns. Of a view's own square only the blocks on and
                  above the diagonal are made, of the two squares across one: half the products. Needs the constant
                  shift, since the maximum of a row is none of its columns'.

Legend of the statistics (float32). The statistics kernel writes, for every column split,
    by rows       nt_partial [PEERS, (r, m, s_pos), SPLITS, pad_a + pad_b]
    by squares    nt_partial [PEERS, own | cross | positive | own columns | cross columns], see Places
    both          kl_partial [2, (E, X, and m unless static), SPLITS, pad_a]
and the finalize kernel merges them into what the backward pass reads, finite in padding rows too:
    nt [PEERS, (1/l, m, q), pad_a + pad_b]                        kl [2, (1/E, X/E, m), pad_a]
where l = r + exp((s_pos − m)/τ) includes the positive and q = r/l = 1 − p_pos is free of cancellation.

Memory: 2 to 9 numbers a row and split; by squares at most 100 a row besides: column sums are kept a group of row blocks
and warp, of which there are few, and a row block adds to what its group has. Nothing of size N × N. No sum passes
through atomics: each has one owner and one fixed order, so two runs give the same bits.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import configurations
from .tiles import LN_2, LOG2_E, cosines, load_temperature, load_tile, sum_of

OWN_GROUPS = tl.constexpr(configurations.OWN_GROUPS)
CROSS_GROUPS = tl.constexpr(configurations.CROSS_GROUPS)

# Below every cosine, rounding included: the shift of a row that has seen no key yet.
NO_KEY_YET = tl.constexpr(-2.0)
# In place of the cosine of a pair that does not count: its exponential is 0, and differences of two stay finite.
LEFT_OUT = tl.constexpr(-1e30)


class RowBlock(NamedTuple):
    """The rows of a program: where they start in their view, and where that begins in the buffer."""

    start: Any
    base: Any


class Span(NamedTuple):
    """Keys start .. stop of a view of so many, and where that begins in the buffer."""

    start: Any
    stop: Any
    keys: Any
    base: Any


class Partials(NamedTuple):
    """A split's statistics of NT-Xent and of the KL, and how far the numbers of a row lie apart."""

    p_nt: Any
    p_kl: Any
    stride_nt: Any
    stride_kl: Any


class Places(NamedTuple):
    """Where a peer's sums of exponentials lie when the work is divided by squares, one after the other:

    own [SPLITS, pad]           rows with the keys of their own view, from the diagonal on
    cross [SPLITS, pad_a]       rows of view a with the keys of view b
    positive [pad_a]            cosines of positives
    own columns [OWN_GROUPS, WARPS, pad] and cross columns [CROSS_GROUPS, WARPS, pad_b]: see Strip
    """

    p_own: Any
    p_cross: Any
    p_positive: Any
    p_own_columns: Any
    p_cross_columns: Any


class Strip(NamedTuple):
    """The sums of columns of a group of row blocks, [WARPS, keys] and so far apart; ``begun``: whether an earlier block
    of the group has left sums there. A slot a warp: in the registers of a product a warp holds whole columns of its 16
    rows, so nothing passes between warps."""

    p_sums: Any
    stride: Any
    begun: Any


class Finished(NamedTuple):
    """Sums of values by finalize program, [(NT-Xent, KL), 2 peers, programs], and how many programs have left theirs,
    which the statistics kernel sets to 0."""

    p_sums: Any
    p_count: Any


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
    """Add the exponentials of a tile of cosines (LEFT_OUT where they do not count) to the row sums; and they. rate =
    log₂ e / τ."""
    b_sum, b_max, b_positive = row_sum
    if STATIC:
        b_exp = tl.exp2(b_s * rate - rate)
    else:
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_sum *= tl.exp2((b_max - b_new_max) * rate)
        b_exp = tl.exp2((b_s - b_new_max[:, None]) * rate)
        b_max = b_new_max
    return RowSum(b_sum + tl.sum(b_exp, 1), b_max, b_positive), b_exp


@triton.jit
def _slots(strip, i_keys, tile: tl.constexpr):
    return strip.p_sums + tl.arange(0, tile.WARPS)[:, None] * strip.stride + i_keys[None, :]


@triton.jit
def _column_sums(strip, i_keys, tile: tl.constexpr):
    """What the group has of a tile's columns: read before the product, which hides the wait."""
    return tl.load(_slots(strip, i_keys, tile), mask=(i_keys[None, :] >= 0) & strip.begun, other=0.0)


@triton.jit
def _add_columns(b_exp, b_columns, strip, i_keys, tile: tl.constexpr):
    """Add up a tile over the rows of each warp. Over all rows at once, through shared memory, it took 139 clocks of
    Hopper a thousand elements, within warps 75."""
    BLOCK_M: tl.constexpr = b_exp.shape[0]
    b_of_warps = tl.reshape(b_exp, [BLOCK_M // (16 * tile.WARPS), tile.WARPS, 16, tile.BLOCK_N])
    tl.store(_slots(strip, i_keys, tile), b_columns + tl.sum(tl.sum(b_of_warps, 0), 1))


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
    span,
    row_sum,
    strip,
    rate,
    SAME_VIEW: tl.constexpr,
    STATIC: tl.constexpr,
    columns: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Row sums of one peer over a span of keys of one view; in its own view a row leaves itself out, in the other its
    positive, whose cosine is kept. Masks cost nothing in the tiles, nearly all, that are neither on the diagonal nor at
    the ragged end.

    ``strip``: where column sums go, or None. In their own view the blocks on the diagonal are whole and leave none."""
    BLOCK_M: tl.constexpr = b_x.shape[0]
    i_rows = block.start + tl.arange(0, BLOCK_M)
    i_buffer = block.base + i_rows
    if strip is not None:  # by squares the last block may reach beyond the padding
        i_buffer = block.base + tl.minimum(i_rows, span.keys - 1)
    for i_start in range(span.start, span.stop, tile.BLOCK_N):
        i_keys = i_start + tl.arange(0, tile.BLOCK_N)
        if strip is not None:
            b_columns = _column_sums(strip, i_keys, tile)
        b_y = load_tile(p_z, span.base + i_keys, 0, columns.WIDTH, columns.BLOCK_D)
        b_s = cosines(b_x, b_y, p_z, i_buffer, span.base + i_keys, columns, arithmetic)
        on_diagonal = (i_start < block.start + BLOCK_M) & (block.start < i_start + tile.BLOCK_N)
        if on_diagonal:
            m_diagonal = i_rows[:, None] == i_keys[None, :]
            if not SAME_VIEW:
                row_sum = _with_positive(row_sum, b_s, m_diagonal)
            b_s = tl.where(m_diagonal, LEFT_OUT, b_s)
        b_s = _without_padding(b_s, i_rows, i_keys, block.start, i_start, span.keys, strip is not None)
        row_sum, b_exp = _add_to_row_sum(b_s, row_sum, rate, STATIC)
        if strip is not None:
            if SAME_VIEW:
                b_exp *= tl.where(on_diagonal, 0.0, 1.0)
            _add_columns(b_exp, b_columns, strip, i_keys, tile)
    return row_sum


@triton.jit
def _without_padding(b_s, i_rows, i_keys, row_start, key_start, keys, OF_ROWS: tl.constexpr):
    """LEFT_OUT for padded keys and, where columns are added up over them, for padded rows."""
    ragged = key_start + b_s.shape[1] > keys
    if OF_ROWS:
        ragged |= row_start + b_s.shape[0] > keys
    if ragged:
        m_tile = (i_keys < keys)[None, :]
        if OF_ROWS:
            m_tile = m_tile & (i_rows < keys)[:, None]
        b_s = tl.where(m_tile, b_s, LEFT_OUT)
    return b_s


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
    span,
    sums,
    strips,
    rates,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    losses: tl.constexpr,
    tile: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Cross-view tiles of both peers held together: the KL sums, and the same tiles' share of both NT-Xent row sums
    and, where there are strips, column sums."""
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
        i_buffer = span.base + i_keys
        if strips is not None:
            b_columns_1 = _column_sums(strips[0], i_keys, tile)
            b_columns_2 = _column_sums(strips[1], i_keys, tile)
        b_y_1 = load_tile(p_z_1, i_buffer, 0, columns_1.WIDTH, columns_1.BLOCK_D)
        b_c_1 = cosines(b_x_1, b_y_1, p_z_1, i_rows, i_buffer, columns_1, arithmetic)
        b_y_2 = load_tile(p_z_2, i_buffer, 0, columns_2.WIDTH, columns_2.BLOCK_D)
        b_c_2 = cosines(b_x_2, b_y_2, p_z_2, i_rows, i_buffer, columns_2, arithmetic)
        b_c_1 = _without_padding(b_c_1, i_rows, i_keys, block.start, i_start, span.keys, strips is not None)
        b_c_2 = _without_padding(b_c_2, i_rows, i_keys, block.start, i_start, span.keys, strips is not None)
        if losses.NT:
            b_s_1 = b_c_1
            b_s_2 = b_c_2
            if (i_start < block.start + BLOCK_M) & (block.start < i_start + tile.BLOCK_N):
                m_diagonal = i_rows[:, None] == i_keys[None, :]
                sum_1 = _with_positive(sum_1, b_c_1, m_diagonal)
                sum_2 = _with_positive(sum_2, b_c_2, m_diagonal)
                b_s_1 = tl.where(m_diagonal, LEFT_OUT, b_c_1)
                b_s_2 = tl.where(m_diagonal, LEFT_OUT, b_c_2)
            sum_1, b_exp_1 = _add_to_row_sum(b_s_1, sum_1, rates.nt, losses.NT_STATIC)
            sum_2, b_exp_2 = _add_to_row_sum(b_s_2, sum_2, rates.nt, losses.NT_STATIC)
            if strips is not None:
                _add_columns(b_exp_1, b_columns_1, strips[0], i_keys, tile)
                _add_columns(b_exp_2, b_columns_2, strips[1], i_keys, tile)
        kl_1, kl_2 = _add_to_kl_sums(b_c_1, b_c_2, kl_1, kl_2, rates, losses.KL_STATIC)
    return sum_1, sum_2, kl_1, kl_2


@triton.jit
def _store_three(p_statistics, three, stride):
    tl.store(p_statistics, three[0])
    tl.store(p_statistics + stride, three[1])
    tl.store(p_statistics + 2 * stride, three[2])


@triton.jit
def _store_kl_sums(p_kl, kl_1, kl_2, stride, STATIC: tl.constexpr):
    """(E, X) of both peers and, unless it is the constant, m."""
    if STATIC:
        tl.store(p_kl, kl_1.b_e)
        tl.store(p_kl + stride, kl_1.b_x)
        tl.store(p_kl + 2 * stride, kl_2.b_e)
        tl.store(p_kl + 3 * stride, kl_2.b_x)
    else:
        _store_three(p_kl, kl_1, stride)
        _store_three(p_kl + 3 * stride, kl_2, stride)


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
    own = Span(span.start, span.stop, span.keys, block.base)
    others = Span(span.start, span.stop, span.keys, base_others)
    row_sum = _no_sum(tile.BLOCK_M)
    row_sum = _nt_over_keys(b_x, p_z, block, own, row_sum, None, rate, True, STATIC, columns, tile, arithmetic)
    row_sum = _nt_over_keys(b_x, p_z, block, others, row_sum, None, rate, False, STATIC, columns, tile, arithmetic)
    _store_three(p_nt + i_rows, row_sum, stride)


@triton.jit
def _joint_rows(
    p_z,
    partials,
    block,
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
        own = Span(span.start, span.stop, span.keys, 0)
        sum_1 = _nt_over_keys(
            b_x_1, p_z_1, block, own, sum_1, None, rates.nt, True, STATIC, columns_1, tile, arithmetic
        )
        sum_2 = _nt_over_keys(
            b_x_2, p_z_2, block, own, sum_2, None, rates.nt, True, STATIC, columns_2, tile, arithmetic
        )
    sum_1, sum_2, kl_1, kl_2 = _joint_over_keys(
        (b_x_1, b_x_2), p_z, block, span, (sum_1, sum_2), None, rates, columns_1, columns_2, losses, tile, arithmetic
    )
    p_nt, p_kl, stride_nt, stride_kl = partials
    _store_kl_sums(p_kl + i_rows, kl_1, kl_2, stride_kl, losses.KL_STATIC)
    if losses.NT:
        _store_three(p_nt + i_rows, sum_1, stride_nt)
        _store_three(p_nt + 3 * stride_nt + i_rows, sum_2, stride_nt)


@triton.jit
def _rates(temperatures, losses: tl.constexpr):
    nt_rate, rate_1, rate_2 = 0.0, 0.0, 0.0
    if losses.NT:
        nt_rate = LOG2_E / load_temperature(temperatures.temperature)
    if losses.KL:
        rate_1 = LOG2_E / load_temperature(temperatures.kd_temperature_1)
        rate_2 = LOG2_E / load_temperature(temperatures.kd_temperature_2)
    return Rates(nt_rate, rate_1, rate_2)


@triton.jit
def _by_rows(
    p_z, p_nt, p_kl, rates, sizes, columns_1: tl.constexpr, columns_2: tl.constexpr, losses: tl.constexpr,
    tile: tl.constexpr, SPLITS: tl.constexpr, arithmetic: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M rows of one view and walks its split of the keys, rows_b in each view (NT-Xent is
    square)."""
    rows_a, rows_b, pad_a, pad_b = sizes
    blocks_a = tl.cdiv(rows_a, tile.BLOCK_M)
    i_split = tl.program_id(1)
    in_b = tl.program_id(0) >= blocks_a
    base_rows = tl.where(in_b, pad_a, 0)
    row_start = (tl.program_id(0) - tl.where(in_b, blocks_a, 0)) * tile.BLOCK_M
    span = _split(i_split, rows_b, pad_a, tile, SPLITS)
    stride_nt = SPLITS * (pad_a + pad_b)
    stride_kl = SPLITS * pad_a
    STATIC: tl.constexpr = losses.NT_STATIC
    if losses.NT:
        p_nt += i_split * (pad_a + pad_b)
    if losses.KL:
        if in_b:
            if losses.NT:
                block = RowBlock(row_start, pad_a)
                _nt_rows(
                    p_z[0], p_nt, block, 0, span, stride_nt, rates.nt, STATIC, columns_1, tile, arithmetic,
                )  # fmt: skip
                _nt_rows(
                    p_z[1], p_nt + 3 * stride_nt, block, 0, span, stride_nt, rates.nt, STATIC, columns_2, tile,
                    arithmetic,
                )  # fmt: skip
        else:
            _joint_rows(
                p_z, Partials(p_nt, p_kl + i_split * pad_a, stride_nt, stride_kl), RowBlock(row_start, 0), span,
                rates, columns_1, columns_2, losses, tile, arithmetic,
            )  # fmt: skip
    else:
        block = RowBlock(row_start, base_rows)
        _nt_rows(p_z[0], p_nt, block, pad_a - base_rows, span, stride_nt, rates.nt, STATIC, columns_1, tile, arithmetic)


@triton.jit
def _split(i_split, keys, base, tile: tl.constexpr, SPLITS: tl.constexpr):
    """The keys of a split: whole tiles."""
    per_split = tl.cdiv(tl.cdiv(keys, tile.BLOCK_N), SPLITS) * tile.BLOCK_N
    start = i_split * per_split
    return Span(start, tl.minimum(start + per_split, keys), keys, base)


@triton.jit
def _places(p_nt, sizes, PEER: tl.constexpr, tile: tl.constexpr, SPLITS: tl.constexpr):
    """Of a peer. configurations.square_numbers has their sum."""
    _, _, pad_a, pad_b = sizes
    pad = pad_a + pad_b
    OWN: tl.constexpr = SPLITS + OWN_GROUPS * tile.WARPS
    if PEER == 1:
        p_nt += OWN * pad + (SPLITS + 1) * pad_a + CROSS_GROUPS * tile.WARPS * pad_b
    p_cross = p_nt + SPLITS * pad
    p_positive = p_cross + SPLITS * pad_a
    p_own_columns = p_positive + pad_a
    return Places(p_nt, p_cross, p_positive, p_own_columns, p_own_columns + OWN_GROUPS * tile.WARPS * pad)


@triton.jit
def _group_rows(rows, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    """Rows of a group of row blocks."""
    return tl.cdiv(tl.cdiv(rows, BLOCK), GROUPS) * BLOCK


@triton.jit
def _own_square(
    p_z, places, i_square, base, sizes, rate, columns: tl.constexpr, tile: tl.constexpr, SPLITS: tl.constexpr,
    arithmetic: tl.constexpr,
):  # fmt: skip
    """A group's row blocks of a view with a split of its keys, those before the block's own left out."""
    rows, _, pad_a, pad_b = sizes
    OWN_M: tl.constexpr = tile.OWN_M
    i_group = i_square // SPLITS
    i_split = i_square % SPLITS
    group_rows = _group_rows(rows, OWN_M, OWN_GROUPS)
    first = i_group * group_rows
    keys = _split(i_split, rows, base, tile, SPLITS)
    p_sums = places.p_own_columns + i_group * tile.WARPS * (pad_a + pad_b) + base
    for start in range(first, tl.minimum(first + group_rows, rows), OWN_M):
        i_rows = start + tl.arange(0, OWN_M)
        # as in _nt_over_keys
        b_x = load_tile(p_z, base + tl.minimum(i_rows, rows - 1), 0, columns.WIDTH, columns.BLOCK_D)
        span = Span(tl.maximum(keys.start, start), keys.stop, rows, base)
        strip = Strip(p_sums, pad_a + pad_b, start > first)
        row_sum = _nt_over_keys(
            b_x, p_z, RowBlock(start, base), span, _no_sum(OWN_M), strip, rate, True, True, columns, tile, arithmetic
        )
        p_rows = places.p_own + i_split * (pad_a + pad_b) + base + i_rows
        tl.store(p_rows, row_sum.b_sum, mask=i_rows < rows)


@triton.jit
def _store_cross(places, row_sum, i_rows, i_split, span, pad_a):
    """A split's sums of rows of view a, and the cosines of those positives that are among its keys."""
    tl.store(places.p_cross + i_split * pad_a + i_rows, row_sum.b_sum)
    tl.store(places.p_positive + i_rows, row_sum.b_positive, mask=(i_rows >= span.start) & (i_rows < span.stop))


@triton.jit
def _cross_square(
    p_z, places, p_kl, i_square, sizes, rates, columns_1: tl.constexpr, columns_2: tl.constexpr, losses: tl.constexpr,
    tile: tl.constexpr, SPLITS: tl.constexpr, arithmetic: tl.constexpr,
):  # fmt: skip
    """A group's row blocks of view a with a split of the keys of view b; of both peers together when KL."""
    rows, _, pad_a, pad_b = sizes
    BLOCK_M: tl.constexpr = tile.BLOCK_M
    i_group = i_square // SPLITS
    i_split = i_square % SPLITS
    group_rows = _group_rows(rows, BLOCK_M, CROSS_GROUPS)
    first = i_group * group_rows
    span = _split(i_split, rows, pad_a, tile, SPLITS)
    place_1 = places[0]
    place_2 = places[-1]
    p_sums_1 = place_1.p_cross_columns + i_group * tile.WARPS * pad_b
    p_sums_2 = place_2.p_cross_columns + i_group * tile.WARPS * pad_b
    for start in range(first, tl.minimum(first + group_rows, rows), BLOCK_M):
        block = RowBlock(start, 0)
        i_rows = start + tl.arange(0, BLOCK_M)
        strip_1 = Strip(p_sums_1, pad_b, start > first)
        b_x_1 = load_tile(p_z[0], i_rows, 0, columns_1.WIDTH, columns_1.BLOCK_D)
        sum_1 = _no_sum(BLOCK_M)
        if losses.KL:
            strip_2 = Strip(p_sums_2, pad_b, start > first)
            b_x_2 = load_tile(p_z[1], i_rows, 0, columns_2.WIDTH, columns_2.BLOCK_D)
            sum_1, sum_2, kl_1, kl_2 = _joint_over_keys(
                (b_x_1, b_x_2), p_z, block, span, (sum_1, _no_sum(BLOCK_M)), (strip_1, strip_2), rates,
                columns_1, columns_2, losses, tile, arithmetic,
            )  # fmt: skip
            _store_kl_sums(p_kl + i_split * pad_a + i_rows, kl_1, kl_2, SPLITS * pad_a, True)
            _store_cross(place_2, sum_2, i_rows, i_split, span, pad_a)
        else:
            sum_1 = _nt_over_keys(
                b_x_1, p_z[0], block, span, sum_1, strip_1, rates.nt, False, True, columns_1, tile, arithmetic
            )
        _store_cross(place_1, sum_1, i_rows, i_split, span, pad_a)


@triton.jit
def _by_squares(
    p_z, p_nt, p_kl, rates, sizes, columns_1: tl.constexpr, columns_2: tl.constexpr, losses: tl.constexpr,
    tile: tl.constexpr, SPLITS: tl.constexpr, arithmetic: tl.constexpr,
):  # fmt: skip
    """Programs of the square across, the dearest, then of the views' own, of peer 1 and of peer 2."""
    OF_CROSS: tl.constexpr = CROSS_GROUPS * SPLITS
    OF_VIEW: tl.constexpr = OWN_GROUPS * SPLITS
    place_1 = _places(p_nt, sizes, 0, tile, SPLITS)
    place_2 = _places(p_nt, sizes, 1, tile, SPLITS)
    i_program = tl.program_id(0)
    i_own = i_program - OF_CROSS
    if i_program < OF_CROSS:
        _cross_square(
            p_z, (place_1, place_2), p_kl, i_program, sizes, rates, columns_1, columns_2, losses, tile, SPLITS,
            arithmetic,
        )  # fmt: skip
    else:
        base = tl.where((i_own // OF_VIEW) % 2 == 1, sizes.pad_a, 0)
        i_square = i_own % OF_VIEW
        if i_own < 2 * OF_VIEW:
            _own_square(p_z[0], place_1, i_square, base, sizes, rates.nt, columns_1, tile, SPLITS, arithmetic)
        elif losses.KL:
            _own_square(p_z[1], place_2, i_square, base, sizes, rates.nt, columns_2, tile, SPLITS, arithmetic)


@triton.jit
def statistics_kernel(
    p_z,
    p_nt,
    p_kl,
    p_count,
    temperatures,
    sizes,
    columns_1: tl.constexpr,
    columns_2: tl.constexpr,
    losses: tl.constexpr,
    tile: tl.constexpr,
    SPLITS: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """Row statistics. p_z: of each peer, two when KL, else one. p_count: see Finished.

    Grid, by rows: (row blocks of view a, then of view b when NT; SPLITS); by squares, which tile.OWN_M asks for:
    (CROSS_GROUPS + 2 · OWN_GROUPS · peers) · SPLITS.
    """
    if tl.program_id(0) == 0:
        tl.store(p_count, 0)
    rates = _rates(temperatures, losses)
    if tile.OWN_M:
        _by_squares(p_z, p_nt, p_kl, rates, sizes, columns_1, columns_2, losses, tile, SPLITS, arithmetic)
    else:
        _by_rows(p_z, p_nt, p_kl, rates, sizes, columns_1, columns_2, losses, tile, SPLITS, arithmetic)


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
def _sums_of_splits(p_sum, i_rows, m_rows, pad, rate, STATIC: tl.constexpr, SPLITS: tl.constexpr):
    """(r, m, s_pos) of rows over the splits, where the work was divided by rows."""
    BLOCK: tl.constexpr = i_rows.shape[0]
    p_sum += i_rows
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
    return RowSum(b_sum, b_max, b_positive)


@triton.jit
def _sums_of_squares(places, i_local, in_b, m_rows, sizes, tile: tl.constexpr, SPLITS: tl.constexpr):
    """(r, 1, s_pos) of rows of a view over splits, groups and warps, where the work was divided by squares."""
    BLOCK: tl.constexpr = i_local.shape[0]
    rows, _, pad_a, pad_b = sizes
    pad = pad_a + pad_b
    i_rows = i_local + tl.where(in_b, pad_a, 0)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_split in range(0, SPLITS):
        b_sum += tl.load(places.p_own + i_split * pad + i_rows, mask=m_rows, other=1.0)
    # a group's columns begin at its own rows
    i_group = i_local // _group_rows(rows, tile.OWN_M, OWN_GROUPS)
    for group in range(0, OWN_GROUPS):
        b_sum += _sum_of_warps(places.p_own_columns, group, i_rows, m_rows & (i_group >= group), pad, tile)
    if in_b:
        for group in range(0, tl.cdiv(rows, _group_rows(rows, tile.BLOCK_M, CROSS_GROUPS))):
            b_sum += _sum_of_warps(places.p_cross_columns, group, i_local, m_rows, pad_b, tile)
    else:
        for i_split in range(0, SPLITS):
            b_sum += tl.load(places.p_cross + i_split * pad_a + i_local, mask=m_rows, other=1.0)
    b_positive = tl.load(places.p_positive + i_local, mask=m_rows, other=0.0)
    return RowSum(b_sum, tl.full([BLOCK], 1.0, tl.float32), b_positive)


@triton.jit
def _sum_of_warps(p_columns, group, i_columns, m_columns, stride, tile: tl.constexpr):
    i_slots = group * tile.WARPS + tl.arange(0, tile.WARPS)
    b_slots = tl.load(p_columns + i_slots[:, None] * stride + i_columns[None, :], mask=m_columns[None, :], other=0.0)
    return tl.sum(b_slots, 0)


@triton.jit
def _nt_values(
    p_partial, p_nt, p_rows, sizes, rate, PEER: tl.constexpr, STATIC: tl.constexpr, tile: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """NT-Xent of this program's rows of the padded buffer (0 for padding), written to p_rows [2N] unless None."""
    rows, _, pad_a, pad_b = sizes
    pad = pad_a + pad_b
    start = tl.program_id(0) * BLOCK
    in_b = start >= pad_a
    i_rows = start + tl.arange(0, BLOCK)
    i_local = i_rows - tl.where(in_b, pad_a, 0)
    m_rows = i_local < rows
    if tile.OWN_M:
        places = _places(p_partial, sizes, PEER, tile, SPLITS)
        b_sum, b_max, b_positive = _sums_of_squares(places, i_local, in_b, m_rows, sizes, tile, SPLITS)
    else:
        p_sums = p_partial + PEER * 3 * SPLITS * pad
        b_sum, b_max, b_positive = _sums_of_splits(p_sums, i_rows, m_rows, pad, rate, STATIC, SPLITS)
    # softplus of the negatives' log-sum-exp less the positive's logit: exact where the positive is confident
    b_logit = tl.log(b_sum) + (b_max - b_positive) * (rate * LN_2)
    b_values = tl.where(b_logit > 0.0, b_logit, 0.0) + _log_one_plus(tl.exp2(-tl.abs(b_logit) * LOG2_E))
    b_values = tl.where(m_rows, b_values, 0.0)
    b_row_max = b_max
    if not STATIC:
        b_row_max = tl.maximum(b_max, b_positive)
        b_sum *= tl.exp2((b_max - b_row_max) * rate)
    b_total = b_sum + tl.exp2((b_positive - b_row_max) * rate)
    p_nt += PEER * 3 * pad + i_rows
    _store_three(p_nt, (1.0 / b_total, b_row_max, b_sum / b_total), pad)
    if p_rows is not None:
        tl.store(p_rows + i_local + tl.where(in_b, rows, 0), b_values, mask=m_rows)
    return tl.sum(b_values)


@triton.jit
def _kl_values(p_partial, p_kl, p_rows, sizes, rates, STATIC: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """KL(P₂ ‖ P₁) and KL(P₁ ‖ P₂) of this program's rows, of view a (0 for padding), the first also to p_rows [R]
    unless None."""
    rows, _, pad_a, _ = sizes
    i_rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_rows = i_rows < rows
    stride = SPLITS * pad_a
    p_1 = p_partial + i_rows
    p_2 = p_1 + (2 if STATIC else 3) * stride
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
            b_moved_1 = (tl.load(p_1 + 2 * stride, mask=m_rows, other=1.0) - b_m_1) * rates.kl_1
            b_moved_2 = (tl.load(p_2 + 2 * stride, mask=m_rows, other=1.0) - b_m_2) * rates.kl_2
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
    _store_three(p_kl + i_rows, (1.0 / b_e_1, b_x_1 / b_e_1, b_m_1), pad_a)
    _store_three(p_kl + 3 * pad_a + i_rows, (1.0 / b_e_2, b_x_2 / b_e_2, b_m_2), pad_a)
    if p_rows is not None:
        tl.store(p_rows + i_rows, b_kl_1, mask=m_rows)
    return tl.sum(b_kl_1), tl.sum(b_kl_2)


@triton.jit
def _write_values(p_sums, programs, values, scales, losses: tl.constexpr, BLOCK: tl.constexpr):
    """The values, of every program's sums."""
    if losses.NT:
        nt_xent_1 = sum_of(p_sums, programs, BLOCK) * scales.nt_scale
        tl.store(values.p_nt_xent_1, nt_xent_1)
    if losses.KL:
        kl_1 = sum_of(p_sums + 2 * programs, programs, BLOCK) * scales.kl_scale
        tl.store(values.p_kl_1, kl_1)
    if losses.NT and losses.KL:
        nt_xent_2 = sum_of(p_sums + programs, programs, BLOCK) * scales.nt_scale
        kl_2 = sum_of(p_sums + 3 * programs, programs, BLOCK) * scales.kl_scale
        loss_1 = nt_xent_1 + scales.kd_weight_1 * kl_1
        loss_2 = nt_xent_2 + scales.kd_weight_2 * kl_2
        tl.store(values.p_kl_2, kl_2)
        tl.store(values.p_nt_xent_2, nt_xent_2)
        tl.store(values.p_loss_1, loss_1)
        tl.store(values.p_loss_2, loss_2)
        tl.store(values.p_loss, loss_1 + loss_2)


@triton.jit
def finalize_kernel(
    partials,
    saved,
    p_rows,
    finished,
    values,
    temperatures,
    sizes,
    scales,
    losses: tl.constexpr,
    tile: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row statistics to values. partials, saved: (nt, kl) as the head has them. p_rows: values of every row (one loss
    only), or None.

    Grid: pad_a / BLOCK when KL alone, else (pad_a + pad_b) / BLOCK. The last program that is done, whichever it is,
    adds up what all have left, in their order: the same bits in every run.
    """
    programs = tl.num_programs(0)
    rates = _rates(temperatures, losses)
    p_own = finished.p_sums + tl.program_id(0)
    STATIC: tl.constexpr = losses.NT_STATIC
    if losses.NT:
        nt_1 = _nt_values(partials[0], saved[0], p_rows, sizes, rates.nt, 0, STATIC, tile, SPLITS, BLOCK)
        tl.store(p_own, nt_1)
        if losses.KL:
            nt_2 = _nt_values(partials[0], saved[0], None, sizes, rates.nt, 1, STATIC, tile, SPLITS, BLOCK)
            tl.store(p_own + programs, nt_2)
    if losses.KL:
        kl_1, kl_2 = 0.0, 0.0
        if tl.program_id(0) * BLOCK < sizes.pad_a:
            kl_1, kl_2 = _kl_values(partials[1], saved[1], p_rows, sizes, rates, losses.KL_STATIC, SPLITS, BLOCK)
        tl.store(p_own + 2 * programs, kl_1)
        tl.store(p_own + 3 * programs, kl_2)
    tl.debug_barrier()
    if tl.atomic_add(finished.p_count, 1) == programs - 1:
        tl.debug_barrier()
        _write_values(finished.p_sums, programs, values, scales, losses, BLOCK)

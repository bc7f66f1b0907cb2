"""Building blocks shared by the kernels: tiles of normalised rows, their cosines, temperatures.

Rows live in one padded buffer a peer, [pad_a + pad_b, WIDTH] in the product dtype: view a (or queries) from row 0,
view b (or keys) from row pad_a. Padding rows and columns are zero, so tiles are loaded without masks, and a padded row
adds exact zeros to every product.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


# What launches pass. Names in capitals are known when a kernel is compiled: a struct of them is one tl.constexpr.


class Sizes(NamedTuple):
    """Rows of each view, and their places in the padded buffers."""

    rows_a: Any
    rows_b: Any
    pad_a: Any
    pad_b: Any


class Temperatures(NamedTuple):
    """Numbers, or pointers to 0-d tensors: τ, and T of each peer."""

    temperature: Any
    kd_temperature_1: Any
    kd_temperature_2: Any


class Values(NamedTuple):
    """Pointers to the 0-d values, or to their upstream gradients; None where there is none."""

    p_loss: Any
    p_loss_1: Any
    p_loss_2: Any
    p_nt_xent_1: Any
    p_nt_xent_2: Any
    p_kl_1: Any
    p_kl_2: Any


class Scales(NamedTuple):
    """What sums over rows are multiplied by, and the weight of each peer's KL in its loss."""

    nt_scale: Any
    kl_scale: Any
    kd_weight_1: Any
    kd_weight_2: Any


class Losses(NamedTuple):
    """Which there are, and whether their exponentials are shifted by the constant 1 (see dogo_forward.py)."""

    NT: Any
    KL: Any
    NT_STATIC: Any
    KL_STATIC: Any


class Columns(NamedTuple):
    """Of a peer's rows: how many there are, are held at once, and are summed at a time in a cosine."""

    WIDTH: Any
    BLOCK_D: Any
    BLOCK_S: Any


class Tile(NamedTuple):
    """Rows that a program owns, and keys that it looks at together, with WARPS warps. OWN_M: rows of a view's own
    square where the work is divided by squares (dogo_forward.py), 0 where by rows."""

    BLOCK_M: Any
    BLOCK_N: Any
    OWN_M: Any
    WARPS: Any


class Arithmetic(NamedTuple):
    """The input precision of float32 products, and whether Triton's interpreter makes them."""

    PRECISION: Any
    INTERPRETED: Any


@triton.jit
def load_temperature(temperature):
    """A temperature given as a number or as a pointer to a 0-d tensor; NaN where it is not finite and above 0."""
    value = temperature
    if value.dtype.is_ptr():
        value = tl.load(value)
    value = value.to(tl.float32)
    return tl.where((value > 0.0) & (value < float("inf")), value, float("nan"))


@triton.jit
def narrow(b_x, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 to DTYPE, to nearest even. Triton's interpreter cuts bfloat16 off instead: there, round the bits
    first."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        b_bits = b_x.to(tl.int32, bitcast=True)
        b_bits = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & -65536
        b_x = b_bits.to(tl.float32, bitcast=True)
    return b_x.to(DTYPE)


@triton.jit
def dot(b_x, b_y, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """x @ y with float32 sums. Triton's interpreter multiplies bfloat16 as raw integers: widen first (exact)."""
    if INTERPRETED:
        b_x = b_x.to(tl.float32)
        b_y = b_y.to(tl.float32)
    return tl.dot(b_x, b_y, input_precision=PRECISION)


@triton.jit
def load_tile(p_rows, i_rows, i_column, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Columns i_column .. i_column + BLOCK_D of the given rows: [rows, BLOCK_D]. 64-bit offsets: rows × WIDTH may pass
    2³¹."""
    i_columns = i_column + tl.arange(0, BLOCK_D)
    return tl.load(p_rows + i_rows.to(tl.int64)[:, None] * WIDTH + i_columns[None, :])


@triton.jit
def load_tile_again(p_rows, i_rows, i_column, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The same tile for the epilogue of a loop. The hint keeps the compiler from holding the first load's registers
    through the loop instead: 32 of 255 a thread at 64 rows of 128 bfloat16 columns, which then spilled."""
    i_columns = i_column + tl.arange(0, BLOCK_D)
    p_tile = p_rows + i_rows.to(tl.int64)[:, None] * WIDTH + i_columns[None, :]
    return tl.load(p_tile, eviction_policy="evict_first")


@triton.jit
def cosines(b_x, b_y, p_z, i_rows, i_keys, columns: tl.constexpr, arithmetic: tl.constexpr):
    """Cosines of two row blocks of a peer, [rows, keys], given their first BLOCK_D columns b_x, b_y.

    Summed BLOCK_S columns at a time, in the forward and in the backward alike: a cosine that is rounded differently in
    the two makes probabilities that do not sum to 1, an error that 1/T multiplies.
    """
    WIDTH: tl.constexpr = columns.WIDTH
    BLOCK_S: tl.constexpr = columns.BLOCK_S
    PRECISION: tl.constexpr = arithmetic.PRECISION  # Triton 3.6 takes a string from no struct
    if BLOCK_S < columns.BLOCK_D:
        b_x = load_tile(p_z, i_rows, 0, WIDTH, BLOCK_S)
        b_y = load_tile(p_z, i_keys, 0, WIDTH, BLOCK_S)
    b_s = dot(b_x, tl.trans(b_y), PRECISION, arithmetic.INTERPRETED)
    if WIDTH > BLOCK_S:
        for i_column in range(BLOCK_S, WIDTH, BLOCK_S):
            b_x_chunk = load_tile(p_z, i_rows, i_column, WIDTH, BLOCK_S)
            b_y_chunk = load_tile(p_z, i_keys, i_column, WIDTH, BLOCK_S)
            b_s += dot(b_x_chunk, tl.trans(b_y_chunk), PRECISION, arithmetic.INTERPRETED)
    return b_s


@triton.jit
def sum_of(p_values, count, BLOCK: tl.constexpr):
    """The sum of count numbers in one fixed order."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        i_values = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_values + i_values, mask=i_values < count, other=0.0)
    return tl.sum(b_sum)

"""All views of a batch in one launch: uint8 pictures of any sizes in, normalised channels-last views in the training
dtype out.

For the pixel with centre (y, x) of a view of S × S pixels, with the draws of its picture:

    sample       (u, v) = centre scaled into the crop (flipped, turned by the angle about the crop's centre);
                 y_c = Σ_k Σ_l t((k + ½ − u)/s_u) t((l + ½ − v)/s_v) x_c[k, l] / Σ Σ t t,   t(d) = max(0, 1 − |d|),
                 s = max(1, crop/S): bilinear, antialiased where the crop is larger than the view, as torchvision's
    brightness   x ← clamp(f x)
    contrast     x ← clamp(f x + (1 − f) m),  m the mean of g(x) over the view as it is now
    saturation   x ← clamp(f x + (1 − f) g(x))                    g(x) = 0.2989 r + 0.587 g + 0.114 b
    hue          turn of the colour circle by f at constant value and chroma (HSV)
    grey         x ← g(x)
    blur         x ← Gaussian of BLUR_SIZE taps and standard deviation σ, rows then columns, reflected at the border
    solarise     x ← 1 − x where x ≥ ½
    normalise    x ← x · scale_c + shift_c

The four adjustments run in the order that was drawn. Clamping is to [0, 1].

Draws are made or read in draws.py.

There is no gradient: views are data.

Statistics: none are saved. Where p_draws [views, N, DRAWS] is given, the draws are read from it instead of made.

Memory: reads each crop once (twice where a view has several tiles and its contrast changes: m is needed first), writes
each view once. Only blurred views are written to and read from a scratch of two float16 images a view as well, which
its own program reads back after a barrier: 12 bytes a pixel.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .draws import DRAWS, RECIPE, Counter, draw, load_draws
from .tiles import narrow

# What the kernel is given


class Pictures(NamedTuple):
    """The pictures of a batch."""

    p_pixels: Any  # uint8, whatever lies there
    p_places: Any  # [N, 3] int64: where in it each [3, height, width] begins, height, width
    p_indices: Any  # [N] int64, the number that its draws depend on


class DrawSource(NamedTuple):
    """What draws are made of, or the draws themselves."""

    p_state: Any  # [2] int64, seed and epoch
    p_recipes: Any  # [views, RECIPE] float32
    p_draws: Any  # [views, N, DRAWS] float32, or None


class Normalisation(NamedTuple):
    """What a channel is multiplied by, and what is added then."""

    scale_0: Any
    scale_1: Any
    scale_2: Any
    shift_0: Any
    shift_1: Any
    shift_2: Any


# What it is made of


class Picture(NamedTuple):
    """One picture: where its red plane begins, and its size."""

    p_red: Any
    height: Any
    width: Any


class Turn(NamedTuple):
    """Cosine and sine of the angle."""

    cosine: Any
    sine: Any


class Tile(NamedTuple):
    """The pixels of a view that are worked on together."""

    i_pixels: Any
    m_pixels: Any


class Colours(NamedTuple):
    """The channels of a tile, [BLOCK] each."""

    b_red: Any
    b_green: Any
    b_blue: Any


# Pixels


@triton.jit
def _tile(number, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    i_pixels = number * BLOCK + tl.arange(0, BLOCK)
    return Tile(i_pixels, i_pixels < PIXELS)


@triton.jit
def _tap(b_centre, extent, support, k):
    """The k-th pixel that a sample at b_centre reads along an axis of the crop, and its weight."""
    b_pixel = tl.maximum(tl.floor(b_centre - support + 0.5), 0.0) + k
    b_last = tl.minimum(tl.floor(b_centre + support + 0.5), extent)
    b_weight = tl.maximum(1.0 - tl.abs(b_pixel + 0.5 - b_centre) / support, 0.0)
    return b_pixel, tl.where(b_pixel < b_last, b_weight, 0.0)


@triton.jit
def _sample(picture, draws, turn, tile, SIZE: tl.constexpr):
    """The view's pixels from the picture, in [0, 1]. A sample reads 2 pixels along an axis, or more where the crop is
    larger than the view."""
    i_pixels = tile.i_pixels % (SIZE * SIZE)
    extent_y = draws.box.height.to(tl.float32)
    extent_x = draws.box.width.to(tl.float32)
    b_x = (i_pixels % SIZE).to(tl.float32)
    b_x = tl.where(draws.flipped, SIZE - 1 - b_x, b_x) + 0.5 - SIZE / 2
    b_y = (i_pixels // SIZE).to(tl.float32) + 0.5 - SIZE / 2
    b_centre_y = ((b_y * turn.cosine + b_x * turn.sine) / SIZE + 0.5) * extent_y
    b_centre_x = ((b_x * turn.cosine - b_y * turn.sine) / SIZE + 0.5) * extent_x
    b_centre_y = tl.minimum(tl.maximum(b_centre_y, 0.5), extent_y - 0.5)
    b_centre_x = tl.minimum(tl.maximum(b_centre_x, 0.5), extent_x - 0.5)
    support_y = tl.maximum(extent_y / SIZE, 1.0)
    support_x = tl.maximum(extent_x / SIZE, 1.0)
    b_red = tl.zeros_like(b_x)
    b_green = tl.zeros_like(b_x)
    b_blue = tl.zeros_like(b_x)
    b_total = tl.zeros_like(b_x)
    plane = picture.height * picture.width
    taps_x = tl.ceil(2 * support_x).to(tl.int32)
    for k in tl.range(0, tl.ceil(2 * support_y).to(tl.int32), num_stages=1):
        b_row, b_weight_y = _tap(b_centre_y, extent_y, support_y, k)
        for l in tl.range(0, taps_x, num_stages=1):  # noqa: E741
            b_column, b_weight_x = _tap(b_centre_x, extent_x, support_x, l)
            b_weight = b_weight_y * b_weight_x
            m_weight = b_weight > 0
            i_row = draws.box.top + b_row.to(tl.int32)
            p_pixels = picture.p_red + i_row * picture.width + draws.box.left + b_column.to(tl.int32)
            b_red += b_weight * tl.load(p_pixels, mask=m_weight, other=0).to(tl.float32)
            b_green += b_weight * tl.load(p_pixels + plane, mask=m_weight, other=0).to(tl.float32)
            b_blue += b_weight * tl.load(p_pixels + 2 * plane, mask=m_weight, other=0).to(tl.float32)
            b_total += b_weight
    b_scale = 1.0 / (255.0 * b_total)
    return Colours(b_red * b_scale, b_green * b_scale, b_blue * b_scale)


@triton.jit
def _clamp(b_x):
    return tl.minimum(tl.maximum(b_x, 0.0), 1.0)


@triton.jit
def _grey(colours):
    return 0.2989 * colours.b_red + 0.587 * colours.b_green + 0.114 * colours.b_blue


@triton.jit
def _blend(colours, factor, rest):
    """f x + rest."""
    return Colours(
        _clamp(colours.b_red * factor + rest),
        _clamp(colours.b_green * factor + rest),
        _clamp(colours.b_blue * factor + rest),
    )


@triton.jit
def _turn_channel(b_hue, b_value, b_chroma, n: tl.constexpr):
    """value − chroma · clamp(min(k, 4 − k)) with k = (n + hue) mod 6, hue in sixths of a turn."""
    b_k = b_hue + n
    b_k = b_k - 6.0 * tl.floor(b_k / 6.0)
    return b_value - b_chroma * _clamp(tl.minimum(b_k, 4.0 - b_k))


@triton.jit
def _turn_hue(colours, shift):
    b_red, b_green, b_blue = colours
    b_value = tl.maximum(tl.maximum(b_red, b_green), b_blue)
    b_chroma = b_value - tl.minimum(tl.minimum(b_red, b_green), b_blue)
    b_inverse = 1.0 / tl.where(b_chroma > 0, b_chroma, 1.0)
    b_hue = tl.where(
        b_value == b_red,
        (b_green - b_blue) * b_inverse,
        tl.where(b_value == b_green, 2.0 + (b_blue - b_red) * b_inverse, 4.0 + (b_red - b_green) * b_inverse),
    )
    b_hue += 6.0 * shift
    return Colours(
        _turn_channel(b_hue, b_value, b_chroma, 5),
        _turn_channel(b_hue, b_value, b_chroma, 3),
        _turn_channel(b_hue, b_value, b_chroma, 1),
    )


@triton.jit
def _adjust(colours, steps, draws, mean):
    """The first ``steps`` adjustments in their drawn order. The loop is not unrolled: one copy of each adjustment."""
    factors = draws.factors
    for step in range(0, steps):
        if step == draws.places.brightness:
            colours = _blend(colours, factors.brightness, -0.0)  # −0, since adding it changes nothing
        elif step == draws.places.contrast:
            colours = _blend(colours, factors.contrast, mean * (1.0 - factors.contrast))
        elif step == draws.places.saturation:
            colours = _blend(colours, factors.saturation, _grey(colours) * (1.0 - factors.saturation))
        elif step == draws.places.hue:
            colours = _turn_hue(colours, factors.hue)
    return colours


@triton.jit
def _sum_grey(colours, draws, tile):
    """Of a tile as it is when contrast's turn comes."""
    colours = _adjust(colours, draws.places.contrast, draws, 0.0)
    return tl.sum(tl.where(tile.m_pixels, _grey(colours), 0.0), 0)


@triton.jit
def _write(p_view, tile, colours, solarised, normalisation, INTERPRETED: tl.constexpr):
    """Solarise, normalise, and write the channels side by side."""
    DTYPE: tl.constexpr = p_view.dtype.element_ty
    threshold = tl.where(solarised, 0.5, 2.0)
    b_red, b_green, b_blue = colours
    b_red = tl.where(b_red >= threshold, 1.0 - b_red, b_red) * normalisation.scale_0 + normalisation.shift_0
    b_green = tl.where(b_green >= threshold, 1.0 - b_green, b_green) * normalisation.scale_1 + normalisation.shift_1
    b_blue = tl.where(b_blue >= threshold, 1.0 - b_blue, b_blue) * normalisation.scale_2 + normalisation.shift_2
    p_pixels = p_view + tile.i_pixels * 3
    tl.store(p_pixels, narrow(b_red, DTYPE, INTERPRETED), mask=tile.m_pixels)
    tl.store(p_pixels + 1, narrow(b_green, DTYPE, INTERPRETED), mask=tile.m_pixels)
    tl.store(p_pixels + 2, narrow(b_blue, DTYPE, INTERPRETED), mask=tile.m_pixels)


# Blur


@triton.jit
def _write_planes(p_planes, tile, colours, PIXELS: tl.constexpr):
    DTYPE: tl.constexpr = p_planes.dtype.element_ty
    p_pixels = p_planes + tile.i_pixels
    tl.store(p_pixels, colours.b_red.to(DTYPE), mask=tile.m_pixels)
    tl.store(p_pixels + PIXELS, colours.b_green.to(DTYPE), mask=tile.m_pixels)
    tl.store(p_pixels + 2 * PIXELS, colours.b_blue.to(DTYPE), mask=tile.m_pixels)


@triton.jit
def _reflect(i_position, SIZE: tl.constexpr):
    i_position = tl.abs(i_position)
    return tl.where(i_position < SIZE, i_position, 2 * SIZE - 2 - i_position)


@triton.jit
def _blur(p_planes, tile, sigma, ALONG_X: tl.constexpr, SIZE: tl.constexpr, BLUR_SIZE: tl.constexpr):
    """One direction of the blur of the three planes [pixels] that start at p_planes."""
    i_row = tile.i_pixels // SIZE
    i_column = tile.i_pixels % SIZE
    b_red = tl.zeros(tile.i_pixels.shape, tl.float32)
    b_green = tl.zeros(tile.i_pixels.shape, tl.float32)
    b_blue = tl.zeros(tile.i_pixels.shape, tl.float32)
    total = sigma * 0.0
    for tap in range(-(BLUR_SIZE // 2), BLUR_SIZE // 2 + 1):
        distance = tap / sigma
        weight = tl.exp(-0.5 * distance * distance)
        total += weight
        if ALONG_X:
            i_source = i_row * SIZE + _reflect(i_column + tap, SIZE)
        else:
            i_source = _reflect(i_row + tap, SIZE) * SIZE + i_column
        p_pixels = p_planes + i_source
        b_red += weight * tl.load(p_pixels, mask=tile.m_pixels, other=0.0).to(tl.float32)
        b_green += weight * tl.load(p_pixels + SIZE * SIZE, mask=tile.m_pixels, other=0.0).to(tl.float32)
        b_blue += weight * tl.load(p_pixels + 2 * SIZE * SIZE, mask=tile.m_pixels, other=0.0).to(tl.float32)
    return Colours(b_red / total, b_green / total, b_blue / total)


@triton.jit
def augment_kernel(
    pictures,
    source,
    p_scratch,
    p_out,
    N,
    normalisation,
    SIZE: tl.constexpr,
    BLUR_SIZE: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One program a view of a picture. Grid: (N, views).

    p_scratch [views, N, 2, 3, SIZE, SIZE] float16, or None where BLUR_SIZE is 0. p_out [views, N, SIZE, SIZE, 3].
    Angles count when TURNS. BLOCK pixels are worked on at once.
    """
    i_image = tl.program_id(0)
    i_view = tl.program_id(1)
    PIXELS: tl.constexpr = SIZE * SIZE
    TILES: tl.constexpr = (PIXELS + BLOCK - 1) // BLOCK
    i_out = i_view.to(tl.int64) * N + i_image
    p_place = pictures.p_places + 3 * i_image
    picture = Picture(
        pictures.p_pixels + tl.load(p_place), tl.load(p_place + 1).to(tl.int32), tl.load(p_place + 2).to(tl.int32)
    )
    if source.p_draws is not None:
        draws = load_draws(source.p_draws + i_out * DRAWS)
    else:
        index = tl.load(pictures.p_indices + i_image).to(tl.int32)
        counter = Counter(tl.load(source.p_state), index, tl.load(source.p_state + 1).to(tl.int32), i_view)
        draws = draw(counter, source.p_recipes + i_view * RECIPE, picture)
    turn = Turn(1.0, 0.0)
    if TURNS:
        turn = Turn(tl.cos(draws.angle), tl.sin(draws.angle))
    p_view = p_out + i_out * (3 * PIXELS)
    p_planes = p_scratch
    if BLUR_SIZE > 0:
        p_planes += i_out * (6 * PIXELS)
    jitters = draws.places.contrast < 4

    # the mean grey that contrast needs: of the view as it is when its turn comes
    mean = draws.sigma * 0.0
    if TILES > 1 and jitters:
        for number in range(0, TILES):
            tile = _tile(number, PIXELS, BLOCK)
            mean += _sum_grey(_sample(picture, draws, turn, tile, SIZE), draws, tile)

    for number in range(0, TILES):
        tile = _tile(number, PIXELS, BLOCK)
        colours = _sample(picture, draws, turn, tile, SIZE)
        if TILES == 1 and jitters:
            mean = _sum_grey(colours, draws, tile)
        colours = _adjust(colours, tl.where(jitters, 4, 0), draws, mean / PIXELS)
        b_grey = _grey(colours)
        b_red, b_green, b_blue = colours
        colours = Colours(
            tl.where(draws.grey, b_grey, b_red),
            tl.where(draws.grey, b_grey, b_green),
            tl.where(draws.grey, b_grey, b_blue),
        )
        if BLUR_SIZE > 0 and draws.sigma > 0:
            _write_planes(p_planes, tile, colours, PIXELS)
        else:
            _write(p_view, tile, colours, draws.solarised, normalisation, INTERPRETED)

    if BLUR_SIZE > 0 and draws.sigma > 0:
        tl.debug_barrier()  # the program's own writes are read below by other threads of it
        for number in range(0, TILES):
            tile = _tile(number, PIXELS, BLOCK)
            colours = _blur(p_planes, tile, draws.sigma, True, SIZE, BLUR_SIZE)
            _write_planes(p_planes + 3 * PIXELS, tile, colours, PIXELS)
        tl.debug_barrier()
        for number in range(0, TILES):
            tile = _tile(number, PIXELS, BLOCK)
            colours = _blur(p_planes + 3 * PIXELS, tile, draws.sigma, False, SIZE, BLUR_SIZE)
            _write(p_view, tile, colours, draws.solarised, normalisation, INTERPRETED)

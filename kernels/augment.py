"""All views of a batch in one launch: uint8 images in, normalised channels-last views in the training dtype out.

For the pixel with centre (y, x) of a view of S_h × S_w pixels, with the draws of its image:

    sample       (u, v) = centre scaled into the crop (flipped, turned by the angle about the crop's centre);
                 x_c = Σ_k Σ_l t((k + ½ − u)/s_u) t((l + ½ − v)/s_v) image_c[k, l] / Σ Σ t t,   t(d) = max(0, 1 − |d|),
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

Draws: Philox4x32-10 with the seed as key and (index of the image, epoch, view, block) as counter: see
dogo_fast/philox.py, and dogo_fast/augment.py for the same in plain tensors. Blocks 0 to 9 are the tries of the crop,
10 the order of the adjustments, 11 their factors, 12 flip, angle, jitter and grey, 13 blur, σ and solarise.

There is no gradient: views are data.

Statistics: none are saved. With DRAWN = True the draws are read from p_draws [views, N, DRAWS] instead of made.

Memory: reads each crop once (twice where a view has several tiles and its contrast changes: m is needed first), writes
each view once. Only blurred views are written to and read from a scratch of two float16 images a view as well, which
its own program reads back after a barrier: 12 bytes a pixel.
"""

import triton
import triton.language as tl

from .tiles import narrow

TRIES = tl.constexpr(10)
DRAWS = tl.constexpr(17)
"""Numbers that describe a view: top, left, height, width, flipped, angle, 4 places, 4 factors, grey, σ, solarised."""
RECIPE = tl.constexpr(21)
"""Numbers that describe a recipe: see dogo_fast.augment.ViewRecipe.numbers."""


@triton.jit
def _uniform(word):
    """A number in [0, 1) of 24 random bits."""
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _between(word, p_low):
    """Uniform between the two numbers at p_low."""
    low = tl.load(p_low)
    return low + _uniform(word) * (tl.load(p_low + 1) - low)


@triton.jit
def _below(word, count):
    """A whole number in 0 … count − 1."""
    return ((word.to(tl.uint64) * count.to(tl.uint64)) >> 32).to(tl.int32)


@triton.jit
def _draw_crop(seed, index, epoch, i_view, p_recipe, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Ten tries at once; where none fits, the largest centred crop of an allowed ratio. In float64, so that rounding
    to whole pixels goes the same way on every device."""
    i_tries = tl.arange(0, 16)
    words = tl.philox(seed, index + 0 * i_tries, epoch + 0 * i_tries, i_view + 0 * i_tries, i_tries)
    area_low = tl.load(p_recipe).to(tl.float64)
    area_high = tl.load(p_recipe + 1).to(tl.float64)
    ratio_low = tl.load(p_recipe + 2).to(tl.float64)
    ratio_high = tl.load(p_recipe + 3).to(tl.float64)
    b_area = HEIGHT * WIDTH * (area_low + words[0].to(tl.float64) * 2.3283064365386963e-10 * (area_high - area_low))
    log_low = tl.log(ratio_low)
    b_ratio = tl.exp(log_low + words[1].to(tl.float64) * 2.3283064365386963e-10 * (tl.log(ratio_high) - log_low))
    b_height = tl.floor(tl.sqrt(b_area / b_ratio) + 0.5).to(tl.int32)
    b_width = tl.floor(tl.sqrt(b_area * b_ratio) + 0.5).to(tl.int32)
    m_fits = (b_height > 0) & (b_height <= HEIGHT) & (b_width > 0) & (b_width <= WIDTH) & (i_tries < TRIES)
    first = tl.min(tl.where(m_fits, i_tries, 16), 0)
    m_first = i_tries == first
    height = tl.sum(tl.where(m_first, b_height, 0), 0)
    width = tl.sum(tl.where(m_first, b_width, 0), 0)
    b_top = _below(words[2], tl.maximum(HEIGHT - b_height + 1, 1))
    b_left = _below(words[3], tl.maximum(WIDTH - b_width + 1, 1))
    top = tl.sum(tl.where(m_first, b_top, 0), 0)
    left = tl.sum(tl.where(m_first, b_left, 0), 0)
    ratio = tl.minimum(tl.maximum(WIDTH / HEIGHT, ratio_low), ratio_high)
    whole_height = tl.maximum(tl.minimum(HEIGHT, tl.floor(WIDTH / ratio + 0.5).to(tl.int32)), 1)
    whole_width = tl.maximum(tl.minimum(WIDTH, tl.floor(HEIGHT * ratio + 0.5).to(tl.int32)), 1)
    none = first == 16
    height = tl.where(none, whole_height, height)
    width = tl.where(none, whole_width, width)
    top = tl.where(none, (HEIGHT - whole_height) // 2, top)
    left = tl.where(none, (WIDTH - whole_width) // 2, left)
    return top, left, height, width


@triton.jit
def _draw(seed, index, epoch, i_view, p_recipe, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Everything that describes a view, as listed at DRAWS."""
    top, left, height, width = _draw_crop(seed, index, epoch, i_view, p_recipe, HEIGHT, WIDTH)
    o0, o1, o2, o3 = tl.philox(seed, index, epoch, i_view, 0 * index + 10)
    f0, f1, f2, f3 = tl.philox(seed, index, epoch, i_view, 0 * index + 11)
    w0, w1, w2, w3 = tl.philox(seed, index, epoch, i_view, 0 * index + 12)
    v0, v1, v2, _ = tl.philox(seed, index, epoch, i_view, 0 * index + 13)
    flipped = _uniform(w0) < tl.load(p_recipe + 4)
    angle = _between(w1, p_recipe + 5)
    # the place of each adjustment: how many of the other words are smaller (of equal ones, the earlier comes first)
    jitters = _uniform(w2) < tl.load(p_recipe + 7)
    k0 = (o1 < o0).to(tl.int32) + (o2 < o0).to(tl.int32) + (o3 < o0).to(tl.int32)
    k1 = (o0 <= o1).to(tl.int32) + (o2 < o1).to(tl.int32) + (o3 < o1).to(tl.int32)
    k2 = (o0 <= o2).to(tl.int32) + (o1 <= o2).to(tl.int32) + (o3 < o2).to(tl.int32)
    k3 = (o0 <= o3).to(tl.int32) + (o1 <= o3).to(tl.int32) + (o2 <= o3).to(tl.int32)
    k0 = tl.where(jitters, k0, 4)
    k1 = tl.where(jitters, k1, 4)
    k2 = tl.where(jitters, k2, 4)
    k3 = tl.where(jitters, k3, 4)
    brightness = _between(f0, p_recipe + 8)
    contrast = _between(f1, p_recipe + 10)
    saturation = _between(f2, p_recipe + 12)
    hue = _between(f3, p_recipe + 14)
    grey = _uniform(w3) < tl.load(p_recipe + 16)
    sigma = tl.where(_uniform(v0) < tl.load(p_recipe + 17), _between(v1, p_recipe + 18), 0.0)
    solarised = _uniform(v2) < tl.load(p_recipe + 20)
    return (
        top,
        left,
        height,
        width,
        flipped,
        angle,
        k0,
        k1,
        k2,
        k3,
        brightness,
        contrast,
        saturation,
        hue,
        grey,
        sigma,
        solarised,
    )


@triton.jit
def _read_draws(p):
    """The same from memory, where they lie as float32."""
    return (
        tl.load(p).to(tl.int32),
        tl.load(p + 1).to(tl.int32),
        tl.load(p + 2).to(tl.int32),
        tl.load(p + 3).to(tl.int32),
        tl.load(p + 4) > 0,
        tl.load(p + 5),
        tl.load(p + 6).to(tl.int32),
        tl.load(p + 7).to(tl.int32),
        tl.load(p + 8).to(tl.int32),
        tl.load(p + 9).to(tl.int32),
        tl.load(p + 10),
        tl.load(p + 11),
        tl.load(p + 12),
        tl.load(p + 13),
        tl.load(p + 14) > 0,
        tl.load(p + 15),
        tl.load(p + 16) > 0,
    )


@triton.jit
def _taps(b_centre, extent, support, k: tl.constexpr):
    """The k-th pixel that a sample at b_centre reads along an axis of the crop, and its weight."""
    b_pixel = tl.maximum(tl.floor(b_centre - support + 0.5), 0.0) + k
    b_last = tl.minimum(tl.floor(b_centre + support + 0.5), extent)
    b_weight = tl.maximum(1.0 - tl.abs(b_pixel + 0.5 - b_centre) / support, 0.0)
    return b_pixel, tl.where(b_pixel < b_last, b_weight, 0.0)


@triton.jit
def _sample(
    p_image,
    i_pixels,
    top,
    left,
    height,
    width,
    flipped,
    cosine,
    sine,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr,
):
    """Red, green and blue of the view's pixels, in [0, 1]."""
    extent_y = height.to(tl.float32)
    extent_x = width.to(tl.float32)
    b_x = (i_pixels % OUT_WIDTH).to(tl.float32)
    b_x = tl.where(flipped, OUT_WIDTH - 1 - b_x, b_x) + 0.5 - OUT_WIDTH / 2
    b_y = (i_pixels // OUT_WIDTH).to(tl.float32) + 0.5 - OUT_HEIGHT / 2
    b_centre_y = ((b_y * cosine + b_x * sine) / OUT_HEIGHT + 0.5) * extent_y
    b_centre_x = ((b_x * cosine - b_y * sine) / OUT_WIDTH + 0.5) * extent_x
    b_centre_y = tl.minimum(tl.maximum(b_centre_y, 0.5), extent_y - 0.5)
    b_centre_x = tl.minimum(tl.maximum(b_centre_x, 0.5), extent_x - 0.5)
    support_y = tl.maximum(extent_y / OUT_HEIGHT, 1.0)
    support_x = tl.maximum(extent_x / OUT_WIDTH, 1.0)
    b_red = tl.zeros_like(b_x)
    b_green = tl.zeros_like(b_x)
    b_blue = tl.zeros_like(b_x)
    b_total = tl.zeros_like(b_x)
    for k in tl.static_range(TAPS_Y):
        b_row, b_weight_y = _taps(b_centre_y, extent_y, support_y, k)
        for l in tl.static_range(TAPS_X):  # noqa: E741
            b_column, b_weight_x = _taps(b_centre_x, extent_x, support_x, l)
            b_weight = b_weight_y * b_weight_x
            m_weight = b_weight > 0
            p_pixels = p_image + (top + b_row.to(tl.int32)) * WIDTH + left + b_column.to(tl.int32)
            b_red += b_weight * tl.load(p_pixels, mask=m_weight, other=0).to(tl.float32)
            b_green += b_weight * tl.load(p_pixels + HEIGHT * WIDTH, mask=m_weight, other=0).to(tl.float32)
            b_blue += b_weight * tl.load(p_pixels + 2 * HEIGHT * WIDTH, mask=m_weight, other=0).to(tl.float32)
            b_total += b_weight
    b_scale = 1.0 / (255.0 * b_total)
    return b_red * b_scale, b_green * b_scale, b_blue * b_scale


@triton.jit
def _clamp(b_x):
    return tl.minimum(tl.maximum(b_x, 0.0), 1.0)


@triton.jit
def _grey(b_red, b_green, b_blue):
    return 0.2989 * b_red + 0.587 * b_green + 0.114 * b_blue


@triton.jit
def _turn_channel(b_hue, b_value, b_chroma, n: tl.constexpr):
    """value − chroma · clamp(min(k, 4 − k)) with k = (n + hue) mod 6, hue in sixths of a turn."""
    b_k = b_hue + n
    b_k = b_k - 6.0 * tl.floor(b_k / 6.0)
    return b_value - b_chroma * _clamp(tl.minimum(b_k, 4.0 - b_k))


@triton.jit
def _turn_hue(b_red, b_green, b_blue, shift):
    b_value = tl.maximum(tl.maximum(b_red, b_green), b_blue)
    b_chroma = b_value - tl.minimum(tl.minimum(b_red, b_green), b_blue)
    b_inverse = 1.0 / tl.where(b_chroma > 0, b_chroma, 1.0)
    b_hue = tl.where(
        b_value == b_red,
        (b_green - b_blue) * b_inverse,
        tl.where(b_value == b_green, 2.0 + (b_blue - b_red) * b_inverse, 4.0 + (b_red - b_green) * b_inverse),
    )
    b_hue += 6.0 * shift
    return (
        _turn_channel(b_hue, b_value, b_chroma, 5),
        _turn_channel(b_hue, b_value, b_chroma, 3),
        _turn_channel(b_hue, b_value, b_chroma, 1),
    )


@triton.jit
def _adjust(b_red, b_green, b_blue, steps, k0, k1, k2, k3, brightness, contrast, saturation, hue, mean):
    """The first ``steps`` adjustments in their drawn order. The loop is not unrolled: one copy of each adjustment."""
    for step in range(0, steps):
        if step == k0:
            b_red = _clamp(b_red * brightness)
            b_green = _clamp(b_green * brightness)
            b_blue = _clamp(b_blue * brightness)
        elif step == k1:
            b_red = _clamp(b_red * contrast + mean * (1.0 - contrast))
            b_green = _clamp(b_green * contrast + mean * (1.0 - contrast))
            b_blue = _clamp(b_blue * contrast + mean * (1.0 - contrast))
        elif step == k2:
            b_grey = _grey(b_red, b_green, b_blue)
            b_red = _clamp(b_red * saturation + b_grey * (1.0 - saturation))
            b_green = _clamp(b_green * saturation + b_grey * (1.0 - saturation))
            b_blue = _clamp(b_blue * saturation + b_grey * (1.0 - saturation))
        elif step == k3:
            b_red, b_green, b_blue = _turn_hue(b_red, b_green, b_blue, hue)
    return b_red, b_green, b_blue


@triton.jit
def _store(
    p_out,
    i_pixels,
    m_pixels,
    b_red,
    b_green,
    b_blue,
    solarised,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    INTERPRETED: tl.constexpr,
):
    """Solarise, normalise, and write the channels side by side."""
    threshold = tl.where(solarised, 0.5, 2.0)
    b_red = tl.where(b_red >= threshold, 1.0 - b_red, b_red) * scale_0 + shift_0
    b_green = tl.where(b_green >= threshold, 1.0 - b_green, b_green) * scale_1 + shift_1
    b_blue = tl.where(b_blue >= threshold, 1.0 - b_blue, b_blue) * scale_2 + shift_2
    p_pixels = p_out + i_pixels * 3
    tl.store(p_pixels, narrow(b_red, p_out.dtype.element_ty, INTERPRETED), mask=m_pixels)
    tl.store(p_pixels + 1, narrow(b_green, p_out.dtype.element_ty, INTERPRETED), mask=m_pixels)
    tl.store(p_pixels + 2, narrow(b_blue, p_out.dtype.element_ty, INTERPRETED), mask=m_pixels)


@triton.jit
def _reflect(i_position, SIZE: tl.constexpr):
    i_position = tl.abs(i_position)
    return tl.where(i_position < SIZE, i_position, 2 * SIZE - 2 - i_position)


@triton.jit
def _blur_tile(
    p_plane,
    i_pixels,
    m_pixels,
    sigma,
    ALONG_X: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """One direction of the blur of the three planes [pixels] that start at p_plane."""
    i_row = i_pixels // OUT_WIDTH
    i_column = i_pixels % OUT_WIDTH
    b_red = tl.zeros(i_pixels.shape, tl.float32)
    b_green = tl.zeros(i_pixels.shape, tl.float32)
    b_blue = tl.zeros(i_pixels.shape, tl.float32)
    total = sigma * 0.0
    for tap in range(-(SIZE // 2), SIZE // 2 + 1):
        distance = tap / sigma
        weight = tl.exp(-0.5 * distance * distance)
        total += weight
        if ALONG_X:
            i_source = i_row * OUT_WIDTH + _reflect(i_column + tap, OUT_WIDTH)
        else:
            i_source = _reflect(i_row + tap, OUT_HEIGHT) * OUT_WIDTH + i_column
        p_pixels = p_plane + i_source
        b_red += weight * tl.load(p_pixels, mask=m_pixels, other=0.0).to(tl.float32)
        b_green += weight * tl.load(p_pixels + OUT_HEIGHT * OUT_WIDTH, mask=m_pixels, other=0.0).to(tl.float32)
        b_blue += weight * tl.load(p_pixels + 2 * OUT_HEIGHT * OUT_WIDTH, mask=m_pixels, other=0.0).to(tl.float32)
    return b_red / total, b_green / total, b_blue / total


@triton.jit
def _store_planes(p_plane, i_pixels, m_pixels, b_red, b_green, b_blue, PIXELS: tl.constexpr):
    p_pixels = p_plane + i_pixels
    tl.store(p_pixels, b_red.to(p_plane.dtype.element_ty), mask=m_pixels)
    tl.store(p_pixels + PIXELS, b_green.to(p_plane.dtype.element_ty), mask=m_pixels)
    tl.store(p_pixels + 2 * PIXELS, b_blue.to(p_plane.dtype.element_ty), mask=m_pixels)


@triton.jit
def augment_kernel(
    p_images,
    p_rows,
    p_indices,
    p_state,
    p_recipes,
    p_draws,
    p_scratch,
    p_out,
    N,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr,
    BLUR_SIZE: tl.constexpr,
    DRAWN: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One program a view of an image. Grid: (N, views).

    p_images [M, 3, HEIGHT, WIDTH] uint8. p_rows, p_indices [N] int64: where each image lies, and the number that its
    draws depend on. p_state [2] int64: seed and epoch. p_recipes [views, RECIPE] float32. p_draws
    [views, N, DRAWS] float32, read when DRAWN. p_scratch [views, N, 2, 3, OUT_HEIGHT, OUT_WIDTH] float16, used when
    BLUR_SIZE > 0. Angles count when TURNS. p_out [views, N, OUT_HEIGHT, OUT_WIDTH, 3]. BLOCK · TILES is at least the
    pixels of a view.
    """
    i_image = tl.program_id(0)
    i_view = tl.program_id(1)
    PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    i_out = i_view.to(tl.int64) * N + i_image
    if DRAWN:
        draws = _read_draws(p_draws + i_out * DRAWS)
    else:
        index = tl.load(p_indices + i_image).to(tl.int32)
        epoch = tl.load(p_state + 1).to(tl.int32)
        draws = _draw(tl.load(p_state), index, epoch, i_view, p_recipes + i_view * RECIPE, HEIGHT, WIDTH)
    (
        top,
        left,
        height,
        width,
        flipped,
        angle,
        k0,
        k1,
        k2,
        k3,
        brightness,
        contrast,
        saturation,
        hue,
        grey,
        sigma,
        sun,
    ) = draws
    cosine = 1.0
    sine = 0.0
    if TURNS:
        cosine = tl.cos(angle)
        sine = tl.sin(angle)
    p_image = p_images + tl.load(p_rows + i_image) * (3 * HEIGHT * WIDTH)
    p_view = p_out + i_out * (3 * PIXELS)
    p_plane = p_scratch + i_out * (6 * PIXELS)
    blurred = (BLUR_SIZE > 0) & (sigma > 0)

    # the mean grey that contrast needs: of the view as it is when its turn comes; 4 means that there is no jitter
    mean = sigma * 0.0
    if TILES > 1 and k1 < 4:
        for tile in range(0, TILES):
            i_pixels = tile * BLOCK + tl.arange(0, BLOCK)
            m_pixels = i_pixels < PIXELS
            b_red, b_green, b_blue = _sample(
                p_image, i_pixels % PIXELS, top, left, height, width, flipped, cosine, sine,
                HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, TAPS_Y, TAPS_X,
            )  # fmt: skip
            b_red, b_green, b_blue = _adjust(
                b_red, b_green, b_blue, k1, k0, k1, k2, k3, brightness, contrast, saturation, hue, 0.0
            )
            mean += tl.sum(tl.where(m_pixels, _grey(b_red, b_green, b_blue), 0.0), 0)

    for tile in range(0, TILES):
        i_pixels = tile * BLOCK + tl.arange(0, BLOCK)
        m_pixels = i_pixels < PIXELS
        b_red, b_green, b_blue = _sample(
            p_image, i_pixels % PIXELS, top, left, height, width, flipped, cosine, sine,
            HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, TAPS_Y, TAPS_X,
        )  # fmt: skip
        if TILES == 1 and k1 < 4:
            b_0, b_1, b_2 = _adjust(
                b_red, b_green, b_blue, k1, k0, k1, k2, k3, brightness, contrast, saturation, hue, 0.0
            )
            mean = tl.sum(tl.where(m_pixels, _grey(b_0, b_1, b_2), 0.0), 0)
        steps = tl.where(k1 < 4, 4, 0)
        b_red, b_green, b_blue = _adjust(
            b_red, b_green, b_blue, steps, k0, k1, k2, k3, brightness, contrast, saturation, hue, mean / PIXELS
        )
        b_grey = _grey(b_red, b_green, b_blue)
        b_red = tl.where(grey, b_grey, b_red)
        b_green = tl.where(grey, b_grey, b_green)
        b_blue = tl.where(grey, b_grey, b_blue)
        if blurred:
            _store_planes(p_plane, i_pixels, m_pixels, b_red, b_green, b_blue, PIXELS)
        else:
            _store(
                p_view, i_pixels, m_pixels, b_red, b_green, b_blue, sun,
                scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, INTERPRETED,
            )  # fmt: skip

    if BLUR_SIZE > 0:  # noqa: SIM102  # the outer one is decided when the kernel is compiled
        if blurred:
            tl.debug_barrier()  # the program's own writes are read below by other threads of it
            for tile in range(0, TILES):
                i_pixels = tile * BLOCK + tl.arange(0, BLOCK)
                m_pixels = i_pixels < PIXELS
                b_red, b_green, b_blue = _blur_tile(
                    p_plane, i_pixels, m_pixels, sigma, True, OUT_HEIGHT, OUT_WIDTH, BLUR_SIZE
                )
                _store_planes(p_plane + 3 * PIXELS, i_pixels, m_pixels, b_red, b_green, b_blue, PIXELS)
            tl.debug_barrier()
            for tile in range(0, TILES):
                i_pixels = tile * BLOCK + tl.arange(0, BLOCK)
                m_pixels = i_pixels < PIXELS
                b_red, b_green, b_blue = _blur_tile(
                    p_plane + 3 * PIXELS, i_pixels, m_pixels, sigma, False, OUT_HEIGHT, OUT_WIDTH, BLUR_SIZE
                )
                _store(
                    p_view, i_pixels, m_pixels, b_red, b_green, b_blue, sun,
                    scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, INTERPRETED,
                )  # fmt: skip

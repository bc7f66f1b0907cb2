"""What describes a view, drawn by the kernel of views or read: the numbers of dogo_fast/views/draws.py.

Philox4x32-10 with the seed as key and (index of the image, epoch, view, block) as counter: see dogo_fast/philox.py.
Blocks 0 to 9 are the tries of the crop, 10 the order of the adjustments, 11 their factors, 12 flip, angle, jitter and
grey, 13 blur, σ and solarise.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

TRIES = tl.constexpr(10)
DRAWS = tl.constexpr(17)
"""Numbers that describe a view: those of Draws, one after the other, which are dogo_fast.views.ViewDraws too."""
RECIPE = tl.constexpr(21)
"""Numbers that describe a recipe (dogo_fast.views.ViewRecipe.numbers): 0 area, 2 ratio, 4 flip, 5 angle, 7 jitter,
8 brightness, 10 contrast, 12 saturation, 14 hue, 16 grey, 17 blur, 18 σ, 20 solarise; a range is two numbers."""


class Counter(NamedTuple):
    """What the random words of a view depend on."""

    seed: Any
    index: Any
    epoch: Any
    view: Any


class Box(NamedTuple):
    """A crop, pixels."""

    top: Any
    left: Any
    height: Any
    width: Any


class Adjustments(NamedTuple):
    """A number for each."""

    brightness: Any
    contrast: Any
    saturation: Any
    hue: Any


class Draws(NamedTuple):
    """All that describes a view."""

    box: Any
    flipped: Any
    angle: Any
    places: Any  # Adjustments: when the turn of each comes; 4 where there is no jitter
    factors: Any  # Adjustments
    grey: Any
    sigma: Any
    solarised: Any


@triton.jit
def _words(counter, block):
    """Four random words of a block, or of each of several."""
    i_block = 0 * counter.index + block
    zero = 0 * i_block
    return tl.philox(counter.seed, counter.index + zero, counter.epoch + zero, counter.view + zero, i_block)


@triton.jit
def _uniform(word):
    """A number in [0, 1) of 24 random bits."""
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _happens(word, p_probability):
    return _uniform(word) < tl.load(p_probability)


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
def _draw_crop(counter, p_recipe, height, width):
    """Ten tries at once; where none fits, the largest centred crop of an allowed ratio. In float64, so that rounding
    to whole pixels goes the same way on every device."""
    exact_height = height.to(tl.float64)
    exact_width = width.to(tl.float64)
    i_tries = tl.arange(0, 16)
    words = _words(counter, i_tries)
    area_low = tl.load(p_recipe).to(tl.float64)
    area_high = tl.load(p_recipe + 1).to(tl.float64)
    ratio_low = tl.load(p_recipe + 2).to(tl.float64)
    ratio_high = tl.load(p_recipe + 3).to(tl.float64)
    b_area = area_low + words[0].to(tl.float64) * 2.3283064365386963e-10 * (area_high - area_low)
    b_area *= exact_height * exact_width
    log_low = tl.log(ratio_low)
    b_ratio = tl.exp(log_low + words[1].to(tl.float64) * 2.3283064365386963e-10 * (tl.log(ratio_high) - log_low))
    b_height = tl.floor(tl.sqrt(b_area / b_ratio) + 0.5).to(tl.int32)
    b_width = tl.floor(tl.sqrt(b_area * b_ratio) + 0.5).to(tl.int32)
    m_fits = (b_height > 0) & (b_height <= height) & (b_width > 0) & (b_width <= width) & (i_tries < TRIES)
    first = tl.min(tl.where(m_fits, i_tries, 16), 0)
    m_first = i_tries == first
    b_top = _below(words[2], tl.maximum(height - b_height + 1, 1))
    b_left = _below(words[3], tl.maximum(width - b_width + 1, 1))
    ratio = tl.minimum(tl.maximum(exact_width / exact_height, ratio_low), ratio_high)
    whole_height = tl.maximum(tl.minimum(height, tl.floor(exact_width / ratio + 0.5).to(tl.int32)), 1)
    whole_width = tl.maximum(tl.minimum(width, tl.floor(exact_height * ratio + 0.5).to(tl.int32)), 1)
    none = first == 16
    return Box(
        tl.where(none, (height - whole_height) // 2, tl.sum(tl.where(m_first, b_top, 0), 0)),
        tl.where(none, (width - whole_width) // 2, tl.sum(tl.where(m_first, b_left, 0), 0)),
        tl.where(none, whole_height, tl.sum(tl.where(m_first, b_height, 0), 0)),
        tl.where(none, whole_width, tl.sum(tl.where(m_first, b_width, 0), 0)),
    )


@triton.jit
def _places(words, jitters):
    """When the turn of each adjustment comes: how many of the other words are smaller (of equal ones, the earlier
    comes first)."""
    w0, w1, w2, w3 = words
    k0 = (w1 < w0).to(tl.int32) + (w2 < w0).to(tl.int32) + (w3 < w0).to(tl.int32)
    k1 = (w0 <= w1).to(tl.int32) + (w2 < w1).to(tl.int32) + (w3 < w1).to(tl.int32)
    k2 = (w0 <= w2).to(tl.int32) + (w1 <= w2).to(tl.int32) + (w3 < w2).to(tl.int32)
    k3 = (w0 <= w3).to(tl.int32) + (w1 <= w3).to(tl.int32) + (w2 <= w3).to(tl.int32)
    return Adjustments(
        tl.where(jitters, k0, 4), tl.where(jitters, k1, 4), tl.where(jitters, k2, 4), tl.where(jitters, k3, 4)
    )


@triton.jit
def draw(counter, p_recipe, picture):
    flip, angle, jitter, grey = _words(counter, 12)
    blur, sigma, solarise, _ = _words(counter, 13)
    factors = _words(counter, 11)
    return Draws(
        _draw_crop(counter, p_recipe, picture.height, picture.width),
        _happens(flip, p_recipe + 4),
        _between(angle, p_recipe + 5),
        _places(_words(counter, 10), _happens(jitter, p_recipe + 7)),
        Adjustments(
            _between(factors[0], p_recipe + 8),
            _between(factors[1], p_recipe + 10),
            _between(factors[2], p_recipe + 12),
            _between(factors[3], p_recipe + 14),
        ),
        _happens(grey, p_recipe + 16),
        tl.where(_happens(blur, p_recipe + 17), _between(sigma, p_recipe + 18), 0.0),
        _happens(solarise, p_recipe + 20),
    )


@triton.jit
def _whole(p):
    return tl.load(p).to(tl.int32)


@triton.jit
def load_draws(p):
    """The same from memory, where they lie as float32."""
    return Draws(
        Box(_whole(p), _whole(p + 1), _whole(p + 2), _whole(p + 3)),
        tl.load(p + 4) > 0,
        tl.load(p + 5),
        Adjustments(_whole(p + 6), _whole(p + 7), _whole(p + 8), _whole(p + 9)),
        Adjustments(tl.load(p + 10), tl.load(p + 11), tl.load(p + 12), tl.load(p + 13)),
        tl.load(p + 14) > 0,
        tl.load(p + 15),
        tl.load(p + 16) > 0,
    )

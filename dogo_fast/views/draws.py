"""What is drawn for every view of every image: a function of (seed, epoch, index of the image, number of the view) and
of nothing else.

In plain tensors, on any device; kernels/draws.py draws the same numbers, from the same words of the generator.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dogo_fast.philox import philox

CROP_TRIES = 10


class ViewDraws(NamedTuple):
    """What was drawn: tensors [..., N], one number an image.

    Attributes:
        top, left, height, width: the crop, pixels (int64).
        flipped: bool.
        angle: radians.
        place_brightness, place_contrast, place_saturation, place_hue: when each adjustment's turn comes, 0 to 3; all 4
            where there is no jitter.
        brightness, contrast, saturation, hue: the factors.
        grey: bool.
        deviation: of the blur, pixels; 0 where there is none.
        solarised: bool.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    angle: Tensor
    place_brightness: Tensor
    place_contrast: Tensor
    place_saturation: Tensor
    place_hue: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    deviation: Tensor
    solarised: Tensor

    def pack(self) -> Tensor:
        """float32 [..., N, 17], as kernels/augment.py reads them."""
        return torch.stack([field.to(torch.float32) for field in self], dim=-1)


def draw_views(
    table: Tensor, seed: int, epoch: Tensor | int, indices: Tensor, views: Tensor, sides: Tensor
) -> ViewDraws:
    """The draws of every view of every image, as the kernel makes them.

    Args:
        table: float32 [views, 21]: ``ViewRecipe.numbers`` of each view.
        seed: the generator's key.
        epoch: a number, or an int64 tensor [1].
        indices: int64 [N], numbers of the images.
        views: int64 [views], numbers of the views.
        sides: int64 [N, 2], height and width of each, pixels.

    Returns:
        tensors [views, N].
    """

    blocks = torch.arange(CROP_TRIES + 4, device=table.device)[:, None, None]
    all_words = philox(seed, indices[None, None, :], epoch, views[None, :, None], blocks)  # 4 of [blocks, views, N]

    def words(block: int) -> list[Tensor]:
        return [word[block] for word in all_words]

    column = table.T[:, :, None]  # [21, views, 1]
    orders = torch.stack(words(10))
    smaller = (orders[None] < orders[:, None]).int()  # [adjustment, other, views, N]
    earlier = torch.ones(4, 4, dtype=torch.bool, device=table.device).tril(-1)[:, :, None, None]
    smaller += ((orders[None] == orders[:, None]) & earlier).int()
    flip, angle, jitter, grey = words(12)
    blur, deviation, solarise, _ = words(13)
    places = torch.where(_uniform(jitter) < column[7], smaller.sum(dim=1), 4)
    factors = (_between(word, column[8 + 2 * i : 10 + 2 * i]) for i, word in enumerate(words(11)))
    return ViewDraws._make(
        (
            *_draw_boxes(table.double(), [word[:CROP_TRIES] for word in all_words], sides),
            _uniform(flip) < column[4],
            _between(angle, column[5:7]),
            *places,
            *factors,
            _uniform(grey) < column[16],
            torch.where(_uniform(blur) < column[17], _between(deviation, column[18:20]), 0.0),
            _uniform(solarise) < column[20],
        )
    )


def _uniform(word: Tensor) -> Tensor:
    """float32 in [0, 1), 24 bits of a word."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def _between(word: Tensor, bounds: Tensor) -> Tensor:
    return bounds[0] + _uniform(word) * (bounds[1] - bounds[0])


def _draw_boxes(table: Tensor, tries: Sequence[Tensor], sides: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width: of the first of ten tries that fits, else the largest centred crop of an allowed
    ratio. In float64, so that rounding to whole pixels goes the same way on every device.

    Args:
        table: float64 [views, 21].
        tries: 4 words of [tries, views, N].
        sides: int64 [N, 2].
    """
    height, width = sides.unbind(dim=1)
    own = width.double() / height
    area_low, area_high, ratio_low, ratio_high = (table[:, i, None] for i in range(4))
    area = height * width * (area_low + tries[0].double() * 2.0**-32 * (area_high - area_low))
    log_low = ratio_low.log()
    ratio = (log_low + tries[1].double() * 2.0**-32 * (ratio_high.log() - log_low)).exp()
    heights = (area / ratio).sqrt().add(0.5).floor().long()
    widths = (area * ratio).sqrt().add(0.5).floor().long()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.int().argmax(dim=0, keepdim=True)
    tops = tries[2] * (height - heights + 1).clamp(min=1) >> 32
    lefts = tries[3] * (width - widths + 1).clamp(min=1) >> 32

    own_ratio = own.maximum(ratio_low).minimum(ratio_high)
    whole_height = (width / own_ratio).add(0.5).floor().long().clamp(min=1).minimum(height)
    whole_width = (height * own_ratio).add(0.5).floor().long().clamp(min=1).minimum(width)
    found = fits.any(dim=0)
    centred = ((height - whole_height) // 2, (width - whole_width) // 2, whole_height, whole_width)
    chosen = (x.gather(0, first)[0] for x in (tops, lefts, heights, widths))
    top, left, box_height, box_width = (torch.where(found, x, y) for x, y in zip(chosen, centred, strict=True))
    return top, left, box_height, box_width

"""The views of drawn numbers in plain tensors: the pictures that the kernels are tested against.

Sampling, then the adjustments in their drawn order, grey, blur, solarise: see kernels/augment.py for the equations.
"""

import torch
from torch import Tensor

from dogo_fast.pictures import Pictures
from dogo_fast.views.draws import ViewDraws


def apply_draws(pictures: Tensor | Pictures, draws: ViewDraws, view_size: int, blur_width: int) -> Tensor:
    """The drawn view of each picture.

    Args:
        pictures: uint8 [N, 3, H, W], or N of any sizes.
        draws: tensors [N].
        view_size: side of the views, pixels.
        blur_width: taps of the blur, odd; 0 for none.

    Returns:
        float32 [N, 3, view_size, view_size] in [0, 1].
    """
    views = _sample(Pictures.of(pictures), draws, view_size)
    places = torch.stack(draws[6:10], dim=1)  # [N, 4]
    factors = torch.stack(draws[10:14], dim=1)[:, :, None, None, None]  # [N, 4, 1, 1, 1]
    for turn in range(len(ADJUSTMENTS)):
        for number, adjust in enumerate(ADJUSTMENTS):
            rows = (places[:, number] == turn).nonzero().flatten()
            if len(rows):
                views[rows] = adjust(views[rows], factors[rows, number])
    rows = draws.grey.nonzero().flatten()
    views[rows] = _grey(views[rows]).expand(-1, 3, -1, -1)
    rows = (draws.deviation > 0).nonzero().flatten()
    if blur_width and len(rows):
        views[rows] = blur_gaussian(views[rows], draws.deviation[rows], blur_width)
    solarised = draws.solarised[:, None, None, None] & (views >= 0.5)
    return torch.where(solarised, 1 - views, views)


def _sample(pictures: Pictures, draws: ViewDraws, size: int) -> Tensor:
    """Crop, scale, flip and turn: float32 [N, 3, size, size] in [0, 1].

    A pixel of the view is flipped, turned about the centre, scaled into the crop and kept between the centres of the
    crop's border pixels, as if the crop had been cut out first.
    """
    begin, height, width = (column[:, None, None] for column in pictures.places.unbind(dim=1))
    centred = torch.arange(size, device=pictures.device) + 0.5 - size / 2
    y, x = centred[:, None], centred[None, :]
    x = torch.where(draws.flipped[:, None, None], -x, x)
    cosine, sine = draws.angle.cos()[:, None, None], draws.angle.sin()[:, None, None]
    place_y, place_x = (y * cosine + x * sine) / size + 0.5, (x * cosine - y * sine) / size + 0.5
    planes = height * width * torch.arange(3, device=pictures.device)[:, None, None, None]  # [3, N, 1, 1]
    result = torch.zeros(3, len(pictures), size, size, device=pictures.device)
    total = torch.zeros(len(pictures), size, size, device=pictures.device)
    columns = _taps(place_x, draws.width, size)
    for row, weight_y in _taps(place_y, draws.height, size):
        for column, weight_x in columns:
            pixel = begin + (draws.top[:, None, None] + row) * width + draws.left[:, None, None] + column
            result += weight_y * weight_x * pictures.pixels[planes + pixel]
            total += weight_y * weight_x
    return (result / (255 * total)).transpose(0, 1).contiguous()


def _taps(place: Tensor, extent: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Pixels (within the crop, of ``extent`` pixels) and weights that samples at ``place`` in [0, 1] read: 2, or more
    where a crop is larger than the view."""
    crop = extent[:, None, None].to(torch.float32)
    centre = (place * crop).clamp(min=0.5).minimum(crop - 0.5)
    support = (crop / size).clamp(min=1)
    start, end = (centre - support + 0.5).floor().clamp(min=0), (centre + support + 0.5).floor().minimum(crop)
    result = []
    for number in range(int((2 * support).ceil().max()) if len(extent) else 0):
        pixel = start + number
        weight = (1 - (pixel + 0.5 - centre).abs() / support).clamp(min=0)
        inside = pixel < end
        result.append((torch.where(inside, pixel, start).long(), torch.where(inside, weight, 0)))
    return result


def _grey(images: Tensor) -> Tensor:
    """Luma [N, 1, H, W]."""
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; images [N, 3, H, W], factor [N, 1, 1, 1]."""
    return (images * factor).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image as it is now."""
    mean = _grey(images).mean(dim=(2, 3), keepdim=True)
    return (images * factor + mean * (1 - factor)).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return (images * factor + _grey(images) * (1 - factor)).clamp(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle by ``shift`` turns at constant value and chroma (HSV).

    With hue h in sixths of a turn, k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue, a channel is
    value − chroma · clamp(min(k, 4 − k), 0, 1).
    """
    red, green, blue = images.unbind(dim=1)
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    divisor = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    k = (hue + 6 * shift[:, 0])[:, None] + torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    k = k.remainder(6)
    return (value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def blur_gaussian(images: Tensor, deviation: Tensor, width: int) -> Tensor:
    """Each image [N, 3, H, W] with a Gaussian of its own standard deviation [N], ``width`` taps, border reflected."""
    distance = torch.arange(width, device=images.device) - width // 2
    kernel = (-0.5 * (distance / deviation[:, None]).square()).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [N, width]
    half = width // 2
    padded = torch.nn.functional.pad(images, (half, half, half, half), mode="reflect")
    rows = torch.einsum("nchwk,nk->nchw", padded.unfold(3, width, 1), kernel)
    return torch.einsum("nchwk,nk->nchw", rows.unfold(2, width, 1), kernel)

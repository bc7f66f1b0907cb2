"""View recipes: every image of a batch gets its own random crop, flip, rotation, colour jitter and greying.

The semantics are torchvision's (v2, tensors): RandomResizedCrop back to the image's own size (bilinear; a crop is never
larger than the image, so antialiasing has nothing to do), RandomHorizontalFlip, ColorJitter in a random order with a
clamp after each step, RandomGrayscale. torchvision draws once for a whole batch; here each image has its own draw.
All draws are made on the CPU, so that a seed gives the same views on every device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_TRIES = 10


@dataclass(frozen=True)
class ViewRecipe:
    """How strong each random change is; the defaults change nothing.

    Args:
        crop_area: smallest and largest share of the image's area that a crop keeps, uniform.
        crop_ratio: smallest and largest width/height of a crop, log-uniform.
        flip: probability of a horizontal flip.
        rotation: largest angle to either side, degrees; done within the crop, whose border pixels repeat outwards.
        jitter: probability of the colour jitter.
        brightness, contrast, saturation: factors are uniform in [1 − x, 1 + x].
        hue: shifts are uniform in [−x, x] turns of the colour circle.
        grayscale: probability of greying.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotation: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0


VIEW_RECIPES = {
    "digits": ViewRecipe((0.5, 1.0), (3 / 4, 4 / 3), rotation=15.0, jitter=0.8, brightness=0.4, contrast=0.4),
    "cifar10": ViewRecipe(
        (0.2, 1.0),
        (3 / 4, 4 / 3),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale=0.2,
    ),
}
"""By data set."""


@dataclass(frozen=True)
class ViewDraws:
    """What was drawn for N images, on the CPU.

    Args:
        boxes: crops as (top, left, height, width), pixels, [N, 4].
        flipped: [N] bool.
        angles: radians, [N].
        order: the jitter's adjustments as indices into ``ADJUSTMENTS``, first to last, −1 for none, [N, steps].
        factors: for each of ``ADJUSTMENTS``, [N, 4].
        grey: [N] bool.
    """

    boxes: Tensor
    flipped: Tensor
    angles: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor


def make_views(images: Tensor, recipe: ViewRecipe, generator: torch.Generator) -> Tensor:
    """One view of each image.

    Args:
        images: uint8 [N, 3, H, W], any device.
        recipe: the changes.
        generator: the source of the draws, on the CPU.

    Returns:
        float32 [N, 3, H, W] in [0, 1] on the images' device.
    """
    draws = draw_views(recipe, len(images), images.shape[2], images.shape[3], generator)
    return apply_draws(images.to(torch.float32) / 255, draws)


def draw_views(recipe: ViewRecipe, count: int, height: int, width: int, generator: torch.Generator) -> ViewDraws:
    """Draw the changes of ``count`` images of ``height`` × ``width`` pixels."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle = math.radians(recipe.rotation)
    ranges = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    middles = (1.0, 1.0, 1.0, 0.0)
    used = torch.tensor([index for index, value in enumerate(ranges) if value > 0], dtype=torch.long)
    order = used[uniform(0, 1, len(used)).argsort(dim=1)]
    jittered = uniform(0, 1, 1) < recipe.jitter
    return ViewDraws(
        boxes=_draw_boxes(recipe, height, width, uniform),
        flipped=uniform(0, 1) < recipe.flip,
        angles=uniform(-angle, angle),
        order=torch.where(jittered, order, -1),
        factors=torch.stack([uniform(m - r, m + r) for m, r in zip(middles, ranges, strict=True)], dim=1),
        grey=uniform(0, 1) < recipe.grayscale,
    )


def _draw_boxes(recipe: ViewRecipe, height: int, width: int, uniform: Callable[..., Tensor]) -> Tensor:
    """Ten tries an image; where none fits, the largest centred crop of an allowed ratio."""
    low, high = recipe.crop_ratio
    area = height * width * uniform(*recipe.crop_area, CROP_TRIES)
    ratio = uniform(math.log(low), math.log(high), CROP_TRIES).exp()
    sizes = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], dim=2)  # [N, tries, 2]
    whole = torch.tensor([height, width], dtype=sizes.dtype)
    fits = ((sizes > 0) & (sizes <= whole)).all(dim=2)
    first = fits.int().argmax(dim=1)
    size = sizes[torch.arange(len(sizes)), first]
    corner = (uniform(0, 1, 2) * (whole - size + 1)).floor()

    own_ratio = min(max(width / height, low), high)
    fallback = torch.tensor([min(height, round(width / own_ratio)), min(width, round(height * own_ratio))])
    found = fits.any(dim=1, keepdim=True)
    return torch.cat(
        [torch.where(found, corner, ((whole - fallback) / 2).floor()), torch.where(found, size, fallback)], dim=1
    )


def apply_draws(images: Tensor, draws: ViewDraws) -> Tensor:
    """The drawn views of float images [N, 3, H, W] in [0, 1]."""
    height, width = images.shape[2:]
    grid = _sampling_grid(draws, height, width).to(images.device)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    factors = draws.factors.to(images.device)[:, :, None, None, None]  # [N, 4, 1, 1, 1]
    for step in range(draws.order.shape[1]):
        for index, adjust in enumerate(ADJUSTMENTS):
            rows = (draws.order[:, step] == index).nonzero().flatten().to(images.device)
            if len(rows):
                views[rows] = adjust(views[rows], factors[rows, index])
    rows = draws.grey.nonzero().flatten().to(images.device)
    views[rows] = _grey(views[rows]).expand(-1, 3, -1, -1)
    return views


def _sampling_grid(draws: ViewDraws, height: int, width: int) -> Tensor:
    """Where each output pixel samples the image: [N, H, W, 2] of (x, y), the image spanning [−1, 1].

    An output pixel is flipped, turned about the centre, scaled into the crop and kept between the centres of the crop's
    border pixels, as if the crop had been cut out first.
    """
    y = ((torch.arange(height) * 2 + 1) / height - 1)[None, :, None]
    x = ((torch.arange(width) * 2 + 1) / width - 1)[None, None, :]
    x = torch.where(draws.flipped[:, None, None], -x, x)
    cosine, sine = draws.angles.cos()[:, None, None], draws.angles.sin()[:, None, None]
    turned = (y * cosine + x * (sine * width / height), x * cosine - y * (sine * height / width))
    source = []
    for axis, size, place in ((1, width, turned[1]), (0, height, turned[0])):
        start, extent = (draws.boxes[:, column, None, None] for column in (axis, axis + 2))
        pixel = ((place + 1) * extent / 2 - 0.5).clamp(min=0).minimum(extent - 1) + start
        source.append((pixel * 2 + 1) / size - 1)
    return torch.stack(source, dim=3)


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

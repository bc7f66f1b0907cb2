"""View recipes, and the views they make: every view of every image has its own random crop, flip, colour jitter, ...

The semantics are torchvision's (v2, tensors): RandomResizedCrop (bilinear, antialiased), RandomHorizontalFlip,
ColorJitter in a random order with a clamp after each step, RandomGrayscale, GaussianBlur (reflected border),
RandomSolarize (threshold ½). torchvision draws once for a whole batch; here each view of each image has its own draw, a
function of (seed, epoch, index of the image, number of the view) and nothing else.

On a GPU one launch makes all views (kernels/augment.py), on a CPU the same is done in C++ (csrc/augment.cpp); the plain
tensors below make the same pictures anywhere, and are what both are tested against.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from dogo_fast.ops.backend import resolve_backend
from dogo_fast.philox import philox

CROP_TRIES = 10
BLUR_SHARE = 0.1
"""The blur's width as a share of the view's side (SimCLR, appendix A)."""
OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ViewRecipe:
    """How strong each random change is; the defaults change nothing.

    Args:
        crop_area: smallest and largest share of the image's area that a crop keeps, uniform.
        crop_ratio: smallest and largest width/height of a crop, log-uniform.
        flip: probability of a horizontal flip.
        rotation: largest angle to either side, degrees; done within the crop, whose border pixels repeat outwards.
        jitter: probability of the colour jitter.
        brightness, contrast, saturation: factors are uniform in [max(0, 1 − x), 1 + x].
        hue: shifts are uniform in [−x, x] turns of the colour circle.
        grayscale: probability of greying.
        blur: probability of the Gaussian blur, whose width is a tenth of the view's side.
        blur_deviation: smallest and largest standard deviation of the blur, pixels, uniform.
        solarise: probability of inverting what is brighter than ½.

    Raises:
        ValueError: a probability, range or strength that is not possible; the message names it.
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
    blur: float = 0.0
    blur_deviation: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        highest = {"rotation": 180.0, "brightness": 10.0, "contrast": 10.0, "saturation": 10.0, "hue": 0.5}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                most = 1.0 if field.name == "crop_area" else 100.0
                if not (len(value) == 2 and 0 < value[0] <= value[1] <= most):
                    raise ValueError(
                        f"{field.name} must be two numbers, 0 < smallest <= largest <= {most:g}, got {value}"
                    )
            elif not 0 <= value <= highest.get(field.name, 1.0):
                most = highest.get(field.name, 1.0)
                raise ValueError(f"{field.name} must be from 0 to {most:g}, got {value}")

    def numbers(self) -> list[float]:
        """What the kernel reads: bounds of every uniform draw, and the probabilities."""
        angle = math.radians(self.rotation)
        factors = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        return [
            *(*self.crop_area, *self.crop_ratio, self.flip, -angle, angle, self.jitter),
            *(bound for pair in factors for bound in pair),
            *(-self.hue, self.hue, self.grayscale, self.blur, *self.blur_deviation, self.solarise),
        ]


_NATURAL_CROP = {"crop_area": (0.2, 1.0), "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5}
_CIFAR_COLOUR = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2}
_SIMCLR_COLOUR = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grayscale": 0.2}

VIEW_RECIPES = {
    "none": ViewRecipe(),
    "digits": ViewRecipe((0.5, 1.0), (3 / 4, 4 / 3), rotation=15.0, jitter=0.8, brightness=0.4, contrast=0.4),
    "cifar": ViewRecipe(**_NATURAL_CROP, **_CIFAR_COLOUR),  # type: ignore[arg-type]
    "simclr": ViewRecipe(**_NATURAL_CROP, **_SIMCLR_COLOUR, blur=0.5),  # type: ignore[arg-type]
    "simclr-solarise": ViewRecipe(**_NATURAL_CROP, **_SIMCLR_COLOUR, blur=0.5, solarise=0.2),  # type: ignore[arg-type]
}
"""By name. ``cifar`` and ``simclr`` are SimCLR's for CIFAR-10 (strength ½, no blur) and for ImageNet (strength 1)."""


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


class Augmentation:
    """Makes the views of a batch: ``augmentation(images, rows, indices)``.

    Args:
        recipes: the recipe of each view; the n-th view's draws depend on n.
        image_size: height and width of the images, pixels.
        seed: of all draws, 0 to 2⁶³ − 1.
        view_size: side of the views, pixels; None means as the images, which must be square then.
        mean, deviation: of each channel, in [0, 1]: views are (x − mean) / deviation.
        dtype: of the views: float32, bfloat16 or float16.
        device: of images and views.
        backend: ``"triton"`` (a GPU, or Triton's interpreter), ``"cpp"`` (a CPU), ``"reference"`` (plain tensors,
            anywhere) or ``"auto"``, as for the losses.

    ``epoch`` is an int64 tensor [1] on the device, to be filled before an epoch: a captured launch reads it.

    Raises:
        TypeError, ValueError: an argument that is not one of these; the message names it.
    """

    def __init__(
        self,
        recipes: Sequence[ViewRecipe],
        image_size: tuple[int, int],
        seed: int,
        *,
        view_size: int | None = None,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        deviation: tuple[float, float, float] = (1.0, 1.0, 1.0),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> None:
        if not recipes:
            raise ValueError("recipes must be one recipe a view, got none")
        if min(image_size) < 1 or (view_size is not None and view_size < 1):
            raise ValueError(f"image_size and view_size must be at least 1 pixel, got {image_size} and {view_size}")
        if view_size is None and image_size[0] != image_size[1]:
            raise ValueError(f"view_size must be given for images that are not square, got None for {image_size}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}")
        if dtype not in OUTPUT_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        if min(deviation) <= 0:
            raise ValueError(f"deviation must be above 0 in every channel, got {deviation}")
        self.recipes = tuple(recipes)
        self.image_size = image_size
        self.view_size = view_size or image_size[0]
        self.seed = seed
        self.mean, self.deviation = mean, deviation
        self.dtype = dtype
        self.table = torch.tensor([recipe.numbers() for recipe in recipes], dtype=torch.float32, device=device)
        self.state = torch.tensor([seed, 0], dtype=torch.int64, device=device)
        self.backend = resolve_backend(backend, (self.table,))
        blurs = any(recipe.blur > 0 for recipe in recipes)
        self.blur_size = blur_size(self.view_size) if blurs else 0
        if self.blur_size // 2 >= self.view_size:
            raise ValueError(f"view_size must be above half the blur's width, {self.blur_size}, got {self.view_size}")

    @property
    def epoch(self) -> Tensor:
        """The epoch that the draws depend on, int64 [1], on the device."""
        return self.state[1:]

    def draw(self, indices: Tensor) -> ViewDraws:
        """The draws of all views, [views, N] each, by plain tensors.

        Args:
            indices: int64 [N], numbers of the images.
        """
        views = torch.arange(len(self.recipes), device=indices.device)
        return draw_views(self.table, self.seed, self.epoch, indices, views, self.image_size)

    def __call__(self, images: Tensor, rows: Tensor, indices: Tensor, draws: ViewDraws | None = None) -> Tensor:
        """All views of a batch.

        Args:
            images: uint8 [M, 3, H, W], contiguous.
            rows: int64 [N]: which of the images.
            indices: int64 [N]: the numbers of these images that their draws depend on.
            draws: use these, [views, N], instead of drawing.

        Returns:
            [views, N, 3, S, S] in ``dtype``, each view channels-last.

        Raises:
            TypeError, ValueError: images of another dtype, shape or layout.
            IndexError: a row that is not one of the images (on a GPU nothing checks it).
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, *self.image_size) or not images.is_contiguous():
            height, width = self.image_size
            raise ValueError(
                f"images must be a contiguous tensor [M, 3, {height}, {width}], got {tuple(images.shape)} "
                f"with strides {images.stride()}"
            )
        if not images.is_cuda and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(images):
            raise IndexError(f"rows must be from 0 to {len(images) - 1}, got {int(rows.min())} to {int(rows.max())}")
        if self.backend == "triton":
            from dogo_fast.ops.augment import launch_augmentation

            return launch_augmentation(self, images, rows, indices, None if draws is None else draws.pack())
        given = self.draw(indices) if draws is None else draws
        if self.backend == "cpp":
            from dogo_fast.ops.augment import augment_tiled

            return augment_tiled(self, images, rows, given.pack())
        views = torch.stack(
            [
                apply_draws(images[rows], ViewDraws(*(field[view] for field in given)), self.view_size, self.blur_size)
                for view in range(len(self.recipes))
            ]
        )
        mean, deviation = (torch.tensor(x, device=images.device)[:, None, None] for x in (self.mean, self.deviation))
        views = ((views - mean) / deviation).to(self.dtype)
        return views.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def blur_size(view_size: int) -> int:
    """Taps of the blur, odd: a tenth of the side, at least 3."""
    return max(3, int(BLUR_SHARE * view_size) // 2 * 2 + 1)


def draw_views(
    table: Tensor, seed: int, epoch: Tensor | int, indices: Tensor, views: Tensor, image_size: tuple[int, int]
) -> ViewDraws:
    """The draws of every view of every image, as the kernel makes them.

    Args:
        table: float32 [views, 21]: ``ViewRecipe.numbers`` of each view.
        seed: the generator's key.
        epoch: a number, or an int64 tensor [1].
        indices: int64 [N], numbers of the images.
        views: int64 [views], numbers of the views.
        image_size: height and width, pixels.

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
            *_draw_boxes(table.double(), [word[:CROP_TRIES] for word in all_words], image_size),
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


def _draw_boxes(
    table: Tensor, tries: Sequence[Tensor], image_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width: of the first of ten tries that fits, else the largest centred crop of an allowed
    ratio. In float64, so that rounding to whole pixels goes the same way on every device.

    Args:
        table: float64 [views, 21].
        tries: 4 words of [tries, views, N].
    """
    height, width = image_size
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

    own_ratio = (torch.ones_like(ratio_low) * (width / height)).clamp(ratio_low, ratio_high)
    whole_height = (width / own_ratio).add(0.5).floor().long().clamp(1, height)
    whole_width = (height * own_ratio).add(0.5).floor().long().clamp(1, width)
    found = fits.any(dim=0)
    centred = ((height - whole_height) // 2, (width - whole_width) // 2, whole_height, whole_width)
    chosen = (x.gather(0, first)[0] for x in (tops, lefts, heights, widths))
    top, left, box_height, box_width = (torch.where(found, x, y) for x, y in zip(chosen, centred, strict=True))
    return top, left, box_height, box_width


def apply_draws(images: Tensor, draws: ViewDraws, view_size: int, blur_width: int) -> Tensor:
    """The drawn view of each image.

    Args:
        images: uint8 [N, 3, H, W].
        draws: tensors [N].
        view_size: side of the views, pixels.
        blur_width: taps of the blur, odd; 0 for none.

    Returns:
        float32 [N, 3, view_size, view_size] in [0, 1].
    """
    views = _sample(images, draws, view_size)
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


def taps(image_size: int, view_size: int) -> int:
    """How many pixels along an axis a sample may read: 2, more where a crop can be larger than the view."""
    return math.ceil(2 * max(image_size / view_size, 1.0))


def _sample(images: Tensor, draws: ViewDraws, size: int) -> Tensor:
    """Crop, scale, flip and turn: float32 [N, 3, size, size] in [0, 1].

    A pixel of the view is flipped, turned about the centre, scaled into the crop and kept between the centres of the
    crop's border pixels, as if the crop had been cut out first.
    """
    height, width = images.shape[2:]
    centred = torch.arange(size, device=images.device) + 0.5 - size / 2
    y, x = centred[:, None], centred[None, :]
    x = torch.where(draws.flipped[:, None, None], -x, x)
    cosine, sine = draws.angle.cos()[:, None, None], draws.angle.sin()[:, None, None]
    place_y, place_x = (y * cosine + x * sine) / size + 0.5, (x * cosine - y * sine) / size + 0.5
    rows = _taps(place_y, draws.height, taps(height, size), size)
    columns = _taps(place_x, draws.width, taps(width, size), size)
    flat = images.flatten(2)
    result = torch.zeros(len(images), 3, size * size, device=images.device)
    total = torch.zeros(len(images), 1, size * size, device=images.device)
    for row, weight_y in rows:
        for column, weight_x in columns:
            weight = (weight_y * weight_x).flatten(1)[:, None]
            pixel = (draws.top[:, None, None] + row) * width + draws.left[:, None, None] + column
            result += weight * flat.gather(2, pixel.flatten(1)[:, None].expand(-1, 3, -1))
            total += weight
    return (result / (255 * total)).view(len(images), 3, size, size)


def _taps(place: Tensor, extent: Tensor, count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Pixels (within the crop, of ``extent`` pixels) and weights that samples at ``place`` in [0, 1] read."""
    crop = extent[:, None, None].to(torch.float32)
    centre = (place * crop).clamp(min=0.5).minimum(crop - 0.5)
    support = (crop / size).clamp(min=1)
    start, end = (centre - support + 0.5).floor().clamp(min=0), (centre + support + 0.5).floor().minimum(crop)
    result = []
    for number in range(count):
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

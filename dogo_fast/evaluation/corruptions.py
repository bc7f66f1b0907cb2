"""Common corruptions of images, computed here, at five severities (Hendrycks and Dietterich, arXiv 1903.12261).

Of the paper's fifteen kinds and four more those that need no picture files (frost), each with the constants that its
authors give for images of 32 pixels; snow, glass blur, spatter and elastic transforms are left out. Noise is drawn
from a generator on the images' device that the caller seeds: on one machine every network of a comparison sees the same
images.
"""

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

SEVERITIES = (1, 2, 3, 4, 5)

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""Images float32 [N, 3, H, W] in [0, 1], the severity from 0, the source of noise."""


def corrupt(images: Tensor, name: str, severity: int, source: torch.Generator) -> Tensor:
    """Images with one corruption.

    Args:
        images: uint8 [N, 3, H, W].
        name: a key of ``CORRUPTIONS``.
        severity: 1 to 5.
        source: of the noise, on the images' device.

    Returns:
        uint8 [N, 3, H, W], on the images' device.

    Raises:
        ValueError: another name or severity, or images of another shape or dtype.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"name must be one of {', '.join(CORRUPTIONS)}, severity 1 to 5, got {name!r} and {severity!r}"
        )
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [N, 3, H, W], got {images.dtype} {tuple(images.shape)}")
    corrupted = CORRUPTIONS[name](images.float() / 255, severity - 1, source)
    return (corrupted.clamp(0, 1) * 255).to(torch.uint8)


def _normal(images: Tensor, source: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=source, device=images.device)


def _gaussian_noise(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    return images + (0.04, 0.06, 0.08, 0.09, 0.10)[severity] * _normal(images, source)


def _shot_noise(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    photons = (500, 250, 100, 75, 50)[severity]
    return torch.poisson(images * photons, source) / photons


def _impulse_noise(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Salt and pepper, half each."""
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    drawn = torch.rand(images.shape, generator=source, device=images.device)
    return torch.where(drawn < amount / 2, 0.0, torch.where(drawn < amount, 1.0, images))


def _speckle_noise(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    return images * (1 + (0.06, 0.1, 0.12, 0.16, 0.2)[severity] * _normal(images, source))


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Each channel with a kernel [K, K] of odd K, the border reflected (repeated where it is too narrow for that)."""
    half = kernel.shape[-1] // 2
    mode = "reflect" if half < min(images.shape[-2:]) else "replicate"
    padded = functional.pad(images, (half,) * 4, mode=mode)
    weight = (kernel / kernel.sum()).to(images)[None, None].expand(3, 1, -1, -1)
    return functional.conv2d(padded, weight, groups=3)


def _gaussian(half: int, deviation: float) -> Tensor:
    line = (-0.5 * (torch.arange(-half, half + 1) / deviation) ** 2).exp()
    return line[:, None] * line


def _gaussian_blur(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    deviation = (0.4, 0.6, 0.7, 0.8, 1.0)[severity]
    return _filtered(images, _gaussian(math.ceil(4 * deviation), deviation))


def _defocus_blur(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """A disc, its edge smoothed."""
    radius, smooth = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity]
    across = torch.arange(-8, 9)
    disc = (across[:, None] ** 2 + across**2 <= radius**2).float()[None, None]
    soft = functional.conv2d(disc, _gaussian(1, smooth)[None, None] / _gaussian(1, smooth).sum(), padding=1)
    return _filtered(images, soft[0, 0])


def _motion_blur(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """A half Gaussian along a line, one direction a batch from −45° to 45°."""
    radius, deviation = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity]
    angle = (torch.rand((), generator=source, device=source.device).item() - 0.5) * math.pi / 2
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1)
    for step in range(radius + 1):
        row, column = round(step * math.sin(angle)), round(step * math.cos(angle))
        kernel[radius - row, radius + column] += math.exp(-0.5 * (step / deviation) ** 2)
    return _filtered(images, kernel)


def _zoom_blur(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """The mean of the image and of its middle, enlarged more and more."""
    most, step = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))[severity]
    height, width = images.shape[-2:]
    total, factors = images.clone(), np.arange(1, most, step).tolist()
    for factor in factors:
        rows, columns = (math.ceil(side / factor) for side in (height, width))
        top, left = (height - rows) // 2, (width - columns) // 2
        middle = images[:, :, top : top + rows, left : left + columns]
        total += functional.interpolate(middle, (height, width), mode="bilinear")
    return total / (len(factors) + 1)


def _fog(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Clouds of the diamond-square kind: noise of halving scale and falling strength, added."""
    strength, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity]
    count, (height, width) = len(images), images.shape[-2:]
    clouds = torch.zeros(count, 1, height, width, device=images.device)
    side, weight = 2, 1.0
    while side <= max(height, width):
        coarse = torch.rand(count, 1, side, side, generator=source, device=images.device)
        clouds += weight * functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        side, weight = 2 * side, weight / decay
    low, high = clouds.amin(dim=(1, 2, 3), keepdim=True), clouds.amax(dim=(1, 2, 3), keepdim=True)
    clouds = (clouds - low) / (high - low)
    largest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + strength * clouds) * largest / (largest + strength)


def _brightness(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Added to the value of HSV, which for value 1 keeps hue and saturation."""
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity]
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter)


def _saturate(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """The saturation of HSV times a factor and more, hue and value kept."""
    factor, added = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[severity]
    value = images.amax(dim=1, keepdim=True)
    saturation = (value - images.amin(dim=1, keepdim=True)) / value.clamp(min=1e-6)
    wanted = (saturation * factor + added).clamp(0, 1)
    return value - (value - images) * torch.where(saturation > 0, wanted / saturation.clamp(min=1e-6), 0.0)


def _contrast(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity] + mean


def _pixelate(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity]
    sides = [max(1, int(side * share)) for side in images.shape[-2:]]
    small = functional.interpolate(images, sides, mode="bilinear", antialias=True)
    return functional.interpolate(small, images.shape[-2:], mode="nearest")


def _jpeg(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    quality = (80, 65, 58, 50, 40)[severity]
    made = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(made).permute(0, 3, 1, 2).to(images.device) / 255


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian-noise": _gaussian_noise,
    "shot-noise": _shot_noise,
    "impulse-noise": _impulse_noise,
    "speckle-noise": _speckle_noise,
    "gaussian-blur": _gaussian_blur,
    "defocus-blur": _defocus_blur,
    "motion-blur": _motion_blur,
    "zoom-blur": _zoom_blur,
    "fog": _fog,
    "brightness": _brightness,
    "saturate": _saturate,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
"""By name."""

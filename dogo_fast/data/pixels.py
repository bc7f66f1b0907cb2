"""Whatever an image comes as, as uint8 [3, H, W], no larger than wanted; and the view of it that is scored."""

import io
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

RESIZED_TO_CROP = 256 / 224
"""How much larger than its crop torchvision's evaluation transform for ImageNet resizes the shorter side."""


def decode(image: object) -> Tensor:
    """A view or copy of an image as uint8 [3, H, W].

    Args:
        image: of Pillow in any mode but F; a NumPy array [H, W] or [H, W, 1, 3 or 4]; a tensor [H, W] or
            [1, 3 or 4, H, W], both of uint8, uint16 or floating point in [0, 1]; the bytes of an image file; or a
            dictionary with these (``bytes``) or a ``path``. A fourth channel (opacity) is dropped, EXIF's orientation
            applied.

    Raises:
        ValueError: anything else. Pillow raises errors of many other kinds for damaged files.
    """
    if isinstance(image, Mapping) and image.keys() & {"bytes", "path"}:
        image = image.get("bytes") or open_file(image["path"])
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    if isinstance(image, Image.Image):
        return _decode_pillow(image)
    if isinstance(image, np.ndarray):
        planes = torch.from_numpy(np.ascontiguousarray(image))
        return _decode_planes(planes.permute(2, 0, 1) if planes.ndim == 3 else planes)
    if isinstance(image, Tensor):
        return _decode_planes(image)
    raise ValueError(f"an image must be of Pillow, NumPy or PyTorch, got {type(image).__name__}")


def open_file(path: str) -> Image.Image:
    """The image in a file, decoded; the file is closed again."""
    with Image.open(path) as image:
        image.load()
        return image


def _decode_pillow(image: Image.Image) -> Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        return _decode_planes(torch.from_numpy(np.array(image, dtype=np.int32).clip(0, 65535).astype(np.uint16)))
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow asks for
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _decode_planes(planes: Tensor) -> Tensor:
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or planes.shape[0] not in (1, 3, 4) or not planes.numel():
        raise ValueError(f"an image must have two sides and 1, 3 or 4 channels, got the shape {list(planes.shape)}")
    if planes.dtype == torch.uint16:
        planes = planes.to(torch.float32) / 65535
    if planes.is_floating_point():
        least, most = planes.min().item(), planes.max().item()
        if not (least >= 0 and most <= 1):  # so that NaN is caught
            raise ValueError(f"floating-point pixels must be from 0 to 1, got {least:g} to {most:g}")
        planes = planes.mul(255).round().to(torch.uint8)
    if planes.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8, uint16 or floating point, got {planes.dtype}")
    return planes[:3].expand(3, -1, -1)


def shrink(image: Tensor, size: int) -> Tensor:
    """An image uint8 [3, H, W], the shorter side resized to ``size`` (bilinear, antialiased) if it is longer."""
    height, width = image.shape[-2:]
    shorter = min(height, width)
    if shorter <= size:
        return image.contiguous()
    sides = [size * side // shorter for side in (height, width)]
    return functional.interpolate(image[None], sides, mode="bilinear", antialias=True)[0]


def scored_views(images: Tensor, size: int, photographs: bool) -> Tensor:
    """The one view of each that evaluation sees, uint8 [N, 3, H, W] to float32 [N, 3, size, size] in 0 … 255.

    Of ``photographs`` torchvision's for ImageNet: the shorter side resized to 256/224 of ``size``, the middle cropped;
    of other images all, resized.
    """
    height, width = images.shape[-2:]
    if height == width == size and not photographs:
        return images.to(torch.float32)
    target = round(size * RESIZED_TO_CROP) if photographs else size
    sides = [target * side // min(height, width) for side in (height, width)]
    resized = functional.interpolate(images.to(torch.float32), sides, mode="bilinear", antialias=True)
    top, left = (round((side - size) / 2) for side in sides)
    return resized[:, :, top : top + size, left : left + size]

"""Whatever an image comes as, as uint8 [3, H, W], and of the size wanted."""

import io
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

MOST_STRETCHED = 4
"""Of longer images only the middle is resized: the rest would be cropped anyway, and may be huge."""


def decode(image: object) -> Tensor:
    """A view or copy of an image as uint8 [3, H, W].

    Args:
        image: of Pillow in any mode but F; a NumPy array [H, W] or [H, W, 1, 3 or 4]; a tensor [H, W] or
            [1, 3 or 4, H, W], both of uint8, uint16 or floating point in [0, 1]; the bytes of an image file; or a
            dictionary with these (``bytes``) or a ``path``. A fourth channel (opacity) is dropped.

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


def fit(image: Tensor, size: int) -> Tensor:
    """The shorter side resized to ``size`` (bilinear, antialiased), then the middle: uint8 [3, size, size]."""
    height, width = image.shape[-2:]
    if height == width == size:
        return image.contiguous()
    shorter = min(height, width)
    image = _crop_middle(image, min(height, MOST_STRETCHED * shorter), min(width, MOST_STRETCHED * shorter))
    sides = [size * side // shorter for side in image.shape[-2:]]
    resized = functional.interpolate(image[None], sides, mode="bilinear", antialias=True)[0]
    return _crop_middle(resized, size, size).contiguous()


def _crop_middle(image: Tensor, height: int, width: int) -> Tensor:
    top, left = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
    return image[:, top : top + height, left : left + width]

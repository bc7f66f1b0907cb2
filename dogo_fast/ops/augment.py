"""Calls the augmentation kernels: Triton's on a GPU, C++ on a CPU."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dogo_fast.ops import extension
from dogo_fast.ops.backend import interpreting

if TYPE_CHECKING:
    from dogo_fast.augment import Augmentation

ONE_TILE = 4096
"""Pixels: a smaller view is held in registers as a whole, so that its mean grey needs no second look."""
TILE = 1024
PIXELS_A_WARP = 128


def augment_tiled(augmentation: "Augmentation", images: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
    """``Augmentation.__call__`` by csrc/augment.cpp, checked already; ``draws``: float32 [views, N, 17]."""
    extension.load()
    size = augmentation.view_size
    out = torch.empty(len(augmentation.recipes), len(rows), size, size, 3, dtype=augmentation.dtype)
    torch.ops.dogo_fast_cpp.augment(
        images, rows.contiguous(), draws.contiguous(), out, augmentation.blur_size, *_scale_and_shift(augmentation)
    )
    return out.permute(0, 1, 4, 2, 3)


def _scale_and_shift(augmentation: "Augmentation") -> tuple[list[float], list[float]]:
    """What a channel is multiplied by, and what is added then, to normalise it."""
    pairs = list(zip(augmentation.mean, augmentation.deviation, strict=True))
    return [1 / deviation for _, deviation in pairs], [-mean / deviation for mean, deviation in pairs]


def launch_augmentation(
    augmentation: "Augmentation", images: Tensor, rows: Tensor, indices: Tensor, draws: Tensor | None
) -> Tensor:
    """The same by kernels/augment.py; without ``draws`` the kernel makes them."""
    from dogo_fast.augment import taps
    from dogo_fast.kernels.augment import augment_kernel
    from dogo_fast.ops import launches

    scale, shift = _scale_and_shift(augmentation)
    views, N, size = len(augmentation.recipes), len(rows), augmentation.view_size
    height, width = augmentation.image_size
    out = torch.empty(views, N, size, size, 3, dtype=augmentation.dtype, device=images.device)
    pixels = size * size
    block = max(32, 1 << (pixels - 1).bit_length()) if pixels <= ONE_TILE else TILE
    # never empty: a pointer is needed, and what it points to is not read where nothing is blurred
    scratch_shape = (views, N, 2, 3, size, size) if augmentation.blur_size else (1,)
    scratch = torch.empty(scratch_shape, dtype=torch.float16, device=images.device)
    launches.run(
        augment_kernel,
        (N, views),
        images,
        rows.contiguous(),
        indices.contiguous(),
        augmentation.state,
        augmentation.table,
        augmentation.table if draws is None else draws.contiguous(),
        scratch,
        out,
        N,
        *scale,
        *shift,
        HEIGHT=height,
        WIDTH=width,
        OUT_HEIGHT=size,
        OUT_WIDTH=size,
        TAPS_Y=taps(height, size),
        TAPS_X=taps(width, size),
        BLUR_SIZE=augmentation.blur_size,
        DRAWN=draws is not None,
        TURNS=draws is not None or any(recipe.rotation > 0 for recipe in augmentation.recipes),
        BLOCK=block,
        TILES=-(-pixels // block),
        INTERPRETED=interpreting(),
        num_warps=min(16, max(1, block // PIXELS_A_WARP)),
    )
    return out.permute(0, 1, 4, 2, 3)

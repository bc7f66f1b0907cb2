"""Views side by side in one picture, to look at."""

import torch
from torch import Tensor

MARGIN = 2
"""Pixels between the pictures."""
SMALLEST = 96
"""Small pictures are enlarged to at least this side, without smoothing."""


def arrange(pictures: Tensor) -> Tensor:
    """uint8 [height, width, 3] of pictures [rows, columns, 3, S, S] in [0, 1], on white."""
    scale = -(-SMALLEST // pictures.shape[-1])
    pictures = pictures.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
    framed = torch.nn.functional.pad(pictures, (MARGIN,) * 4, value=1.0)
    rows, columns, _, height, width = framed.shape
    sheet = framed.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    return (sheet * 255).round().clamp(0, 255).to(torch.uint8)

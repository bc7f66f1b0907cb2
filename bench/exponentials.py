"""A Triton kernel of exponentials alone, to measure how many a GPU makes a second."""

import triton
import triton.language as tl
from torch import Tensor

COUNT = 1024
"""Exponentials an element."""
BLOCK = 1024


@triton.jit
def exponentials_kernel(p_out, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    i_out = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = i_out.to(tl.float32) * -1e-6
    for _ in range(COUNT):
        # each waits for the one before; there are enough warps to hide that
        b_x = tl.exp2(b_x) - 1.5
    tl.store(p_out + i_out, b_x)


def launch(out: Tensor) -> None:
    """out: float32, a multiple of BLOCK numbers."""
    exponentials_kernel[(out.numel() // BLOCK,)](out, COUNT=COUNT, BLOCK=BLOCK, num_warps=4)

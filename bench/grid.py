"""Which sizes are measured: a short grid for ten minutes, others for checks and tests."""

from collections.abc import Iterator
from typing import NamedTuple

GRIDS = ("short", "check", "smoke")


class LossCase(NamedTuple):
    """One size on one device: N images, projections of D columns."""

    device: str
    N: int
    D: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.device}-N{self.N}-D{self.D}-{self.dtype}"


MIDDLE = 128
"""D where it is not what varies."""
WIDTHS = (64, 256, 2048)
"""D where it does."""


class Extent(NamedTuple):
    """The sizes of a grid on a device. ``parts``: N of NT-Xent and of the KL alone; all else is of the whole loss."""

    dtype: str
    sizes: tuple[int, ...]
    parts: tuple[int, ...]
    other_dtypes: tuple[str, ...] = ()
    sizes_of_other_dtypes: tuple[int, ...] = ()
    size_of_widths: int | None = None


EXTENTS = {
    ("smoke", "cpu"): Extent("float32", sizes=(64,), parts=(64,)),
    ("smoke", "cuda"): Extent("bfloat16", sizes=(64,), parts=(64,)),
    # not N = 1024: its [2048, 2048] matrices, 16 MB, are allocated anew in some processes and kept in others, and the
    # dense formula took from 1 to 1.7 times as long
    ("check", "cpu"): Extent("float32", sizes=(256, 2048), parts=(4096,)),
    ("check", "cuda"): Extent("bfloat16", sizes=(256, 4096, 32768), parts=(4096,)),
    ("short", "cpu"): Extent(
        "float32",
        sizes=(64, 256, 1024, 4096),
        parts=(256, 1024, 4096),
        other_dtypes=("bfloat16",),
        sizes_of_other_dtypes=(256, 1024, 4096),
        size_of_widths=512,
    ),
    ("short", "cuda"): Extent(
        "bfloat16",
        sizes=(64, 256, 1024, 4096, 16384, 32768, 65536, 262144),
        parts=(256, 4096, 32768),
        other_dtypes=("float32", "float16"),
        sizes_of_other_dtypes=(256, 4096),
        size_of_widths=4096,
    ),
}

WANTED = {
    "smoke": ("dense", "lightly", "metric-learning", "authors"),
    "check": ("dense",),
    "short": ("dense", "compile", "lightly", "metric-learning", "authors"),
}
BUDGET = {"smoke": 1.0, "check": 6.0, "short": 6.0}
"""Seconds of rounds a case; five rounds at the least."""


def loss_cases(grid: str, loss: str) -> Iterator[LossCase]:
    """Of both devices: what the machine has not is skipped by name."""
    for device in ("cpu", "cuda"):
        extent = EXTENTS[grid, device]
        if loss != "dogo_loss":
            yield from (LossCase(device, N, MIDDLE, extent.dtype) for N in extent.parts)
            continue
        yield from (LossCase(device, N, MIDDLE, extent.dtype) for N in extent.sizes)
        for dtype in extent.other_dtypes:
            yield from (LossCase(device, N, MIDDLE, dtype) for N in extent.sizes_of_other_dtypes)
        if extent.size_of_widths:
            yield from (LossCase(device, extent.size_of_widths, D, extent.dtype) for D in WIDTHS)

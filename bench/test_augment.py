"""Views a second: ours against torchvision v2 on the CPU (one core, image after image) and kornia on the same device.

In every round all run one after the other, on the same images; ratios are of the times of a round.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from dogo_fast.ops.compiling import KernelCase
from dogo_fast.pictures import Pictures
from dogo_fast.views import VIEW_RECIPES, Augmentation

from . import per_kernel
from .rivals import DEVIATION, MEAN, kornia_views, torchvision_views
from .timing import measure_rates, synchronize

VIEWS = 4


class ViewCase(NamedTuple):
    """N square images of so many pixels a side, four views each."""

    device: str
    size: int
    recipe: str
    N: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.device}-{self.size}px-{self.recipe}-N{self.N}"


def cases(grid: str) -> Iterable[ViewCase]:
    if grid == "smoke":
        return [ViewCase("cpu", 32, "cifar", 8, 2), ViewCase("cuda", 32, "cifar", 8, 2)]
    small = [ViewCase("cpu", 32, "cifar", 256, 9), ViewCase("cuda", 32, "cifar", 1024, 9)]
    if grid == "check":
        return small
    large = [ViewCase("cuda", 96, "simclr", 256, 9), ViewCase("cuda", 224, "simclr", 256, 9)]
    return [*small, ViewCase("cpu", 96, "simclr", 64, 9), *large]


def test_views(benchmark: Any, case: ViewCase, rates: dict[str, float]) -> None:
    device, size, recipe, N, rounds = case
    threads = torch.get_num_threads()
    chosen = VIEW_RECIPES[recipe]
    images = torch.randint(0, 256, (4 * N, 3, size, size), dtype=torch.uint8)
    on_device = images.to(device)
    resident = Pictures.of(on_device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    augmentation = Augmentation([chosen] * VIEWS, size, 0, mean=MEAN, deviation=DEVIATION, dtype=dtype, device=device)
    by_torchvision, by_kornia = torchvision_views(chosen, size), kornia_views(chosen, size)
    rows = torch.randperm(4 * N)[:N]
    there = rows.to(device)

    def make_ours() -> None:
        augmentation(resident.select(there), there)
        synchronize(device)

    def make_torchvisions() -> None:
        torch.set_num_threads(1)  # a worker has one
        by_torchvision(images[rows])
        torch.set_num_threads(threads)

    def make_kornias() -> None:
        by_kornia(on_device[there].repeat(VIEWS, 1, 1, 1))
        synchronize(device)

    others = {"torchvision": make_torchvisions, "kornia": make_kornias}
    # of torchvision's, one view each is measured
    measured = measure_rates(benchmark, VIEWS * N, make_ours, others, rounds, weights={"torchvision": VIEWS})
    benchmark.extra_info.update({"kind": "views", **case._asdict(), **measured})
    if device == "cuda":
        named = KernelCase("augment", "bfloat16", size, N, recipe)
        benchmark.extra_info["kernels"] = per_kernel.measure([make_ours] * rounds, named, rates)

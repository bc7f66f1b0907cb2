"""Views a second: ours against torchvision v2 on the CPU (one core, image after image) and kornia on the same device.

In every round all run one after the other, on the same images; ratios are of the times of a round. pytest-benchmark's
columns mark times ours; the others' times and the ratios are in extra_info. On a GPU there is a case more.
"""

import platform
from typing import Any

import pytest
import torch
from peers import quartiles, seconds
from rivals import DEVIATION, MEAN, kornia_views, torchvision_views

from dogo_fast.augment import VIEW_RECIPES, Augmentation

VIEWS = 4
CASES = [("cpu", 32, "cifar", 256), ("cpu", 96, "simclr", 64)]
if torch.cuda.is_available():
    CASES += [("cuda", 32, "cifar", 1024), ("cuda", 96, "simclr", 256), ("cuda", 224, "simclr", 256)]
ROUNDS = 9


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize(("device", "size", "recipe", "N"), CASES)
def test_views(benchmark: Any, device: str, size: int, recipe: str, N: int) -> None:
    threads = torch.get_num_threads()
    chosen = VIEW_RECIPES[recipe]
    images = torch.randint(0, 256, (4 * N, 3, size, size), dtype=torch.uint8)
    resident = images.to(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    augmentation = Augmentation(
        [chosen] * VIEWS, (size, size), 0, mean=MEAN, deviation=DEVIATION, dtype=dtype, device=device
    )
    by_torchvision, by_kornia = torchvision_views(chosen, size), kornia_views(chosen, size)
    rows = torch.randperm(4 * N)[:N]
    there = rows.to(device)
    times: dict[str, list[float]] = {"ours": [], "torchvision": [], "kornia": []}

    def make_ours() -> None:
        augmentation(resident, there, there)
        synchronize(device)

    def make_theirs() -> None:
        by_torchvision(images[rows])

    def make_kornias() -> None:
        by_kornia(resident[there].repeat(VIEWS, 1, 1, 1))
        synchronize(device)

    def run() -> None:
        times["ours"].append(seconds(make_ours))

    def run_others() -> None:
        torch.set_num_threads(1)  # a worker has one
        times["torchvision"].append(VIEWS * seconds(make_theirs))  # one view each is measured
        torch.set_num_threads(threads)
        times["kornia"].append(seconds(make_kornias))

    for _ in range(2):
        run_others()
        run()
    for values in times.values():
        values.clear()
    benchmark.pedantic(run, setup=run_others, rounds=ROUNDS, iterations=1)
    benchmark.extra_info.update(
        {
            "kind": "views",
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
            "case": f"{size} px, {recipe}, {N} images",
            "threads": threads,
            "torch": torch.__version__,
            "per_second": {name: quartiles([VIEWS * N / value for value in values]) for name, values in times.items()},
            "faster_than": {
                name: quartiles([other / own for other, own in zip(values, times["ours"], strict=True)])
                for name, values in times.items()
                if name != "ours"
            },
        }
    )

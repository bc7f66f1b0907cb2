"""Images a second of pretraining from end to end, everything that a run does in an epoch: ours against a loop like the
authors', with torchvision's views in the process, both on the same images.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from dogo_fast.training import Trainer

from .rivals import authors_step
from .timing import measure_rates, synchronize

SIZE = 32


class PretrainingCase(NamedTuple):
    """Two peers of one backbone, so many images of 32 px in batches of N."""

    device: str
    backbone: str
    images: int
    N: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.device}-{self.backbone}-{self.images}images-N{self.N}"


def cases(grid: str) -> Iterable[PretrainingCase]:
    if grid == "smoke":
        return [PretrainingCase("cpu", "small", 16, 8, 2), PretrainingCase("cuda", "small", 16, 8, 2)]
    if grid == "check":
        return []
    return [PretrainingCase("cpu", "small", 1024, 128, 5), PretrainingCase("cuda", "resnet18", 50_000, 512, 5)]


def test_pretraining(benchmark: Any, case: PretrainingCase) -> None:
    """A round is an epoch of ours, and two batches of theirs; ratios are of seconds an image."""
    device, name, count, N, rounds = case
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8)
    trainer = Trainer((name, name), images, epochs=rounds + 1, batch_size=N, recipe="cifar", device=device)
    theirs = authors_step(name, SIZE, device)

    def two_batches() -> None:
        for batch in images[: 2 * N].split(N):
            theirs(batch)
        synchronize(device)

    def epoch() -> None:
        trainer.fit(until=len(trainer.history) + 1)
        synchronize(device)

    items = count // N * N
    weights = {"authors": items / len(images[: 2 * N])}
    measured = measure_rates(benchmark, items, epoch, {"authors": two_batches}, rounds, weights=weights, warm=1)
    waited = trainer.history[-1]["data_wait"]
    benchmark.extra_info.update({"kind": "pretraining", **case._asdict(), **measured, "data_wait": waited})

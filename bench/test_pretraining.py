"""Images a second of pretraining from end to end, everything that a run does in an epoch: ours against a loop like the
authors', with torchvision's views in the process, both on the same images.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from dogo_fast.peers import build_peer
from dogo_fast.training import Trainer
from dogo_fast.views import VIEW_RECIPES

from .rivals import AuthorsStep, torchvision_views
from .timing import quartiles, seconds, synchronize, times_as_long

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
    theirs = AuthorsStep(
        [build_peer(name, SIZE, 0, number).to(device).train() for number in (1, 2)],
        torchvision_views(VIEW_RECIPES["cifar"], SIZE),
        torch.device(device),
    )
    few = images[: 2 * N]
    times: dict[str, list[float]] = {"ours": [], "authors": []}

    def run_theirs() -> None:
        def epoch() -> None:
            for batch in few.split(N):
                theirs(batch)
            synchronize(device)

        times["authors"].append(seconds(epoch) / len(few))

    def run() -> None:
        one_more = len(trainer.history) + 1
        times["ours"].append(seconds(lambda: (trainer.fit(until=one_more), synchronize(device))) / (count // N * N))

    run_theirs()
    run()
    for values in times.values():
        values.clear()
    benchmark.pedantic(run, setup=run_theirs, rounds=rounds, iterations=1)
    benchmark.extra_info.update(
        {
            "kind": "pretraining",
            **case._asdict(),
            "per_second": {key: quartiles([1 / value for value in values]) for key, values in times.items()},
            "faster_than": times_as_long(times),
            "data_wait": trainer.history[-1]["data_wait"],
        }
    )

"""Images a second of photographs that stream from JPEG files to the views of a step, four of 224 px each: ours, decoded
in workers and drawn by the kernel, against torchvision's way, a DataLoader whose workers decode and transform."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dogo_fast.data import FileSource, make_loader
from dogo_fast.data.pixels import decode, open_file
from dogo_fast.views import VIEW_RECIPES, Augmentation

from .rivals import DEVIATION, MEAN, torchvision_views
from .timing import measure_rates, synchronize

VIEWS, SIZE, RECIPE, WORKERS = 4, 224, "simclr", 2
HEIGHT, WIDTH = 375, 500


class StreamingCase(NamedTuple):
    """So many photographs of 500 × 375 pixels in batches of N, by two workers."""

    device: str
    images: int
    N: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.device}-{self.images}images-N{self.N}"


def cases(grid: str) -> Iterable[StreamingCase]:
    if grid == "smoke":
        return [StreamingCase("cpu", 8, 4, 2), StreamingCase("cuda", 8, 4, 2)]
    return [] if grid == "check" else [StreamingCase("cpu", 128, 32, 5), StreamingCase("cuda", 512, 128, 5)]


class Photographs(Dataset[Tensor]):
    """Four views of each file, as a worker makes them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.transform = paths, torchvision_views(VIEW_RECIPES[RECIPE], SIZE)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(decode(open_file(str(self.paths[index]))).expand(VIEWS, -1, -1, -1))


def write_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of blobs, which compress about as photographs do."""
    paths = []
    for number in range(count):
        small = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(number))
        pixels = torch.nn.functional.interpolate(small, (HEIGHT, WIDTH), mode="bicubic")[0].clamp(0, 1) * 255
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(paths[-1], quality=90)
    return paths


def test_streaming(benchmark: Any, case: StreamingCase) -> None:
    """A round is an epoch of each."""
    device = torch.device(case.device)
    dtype = torch.bfloat16 if case.device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_photographs(Path(scratch), case.images)
        loader = make_loader(FileSource(paths), case.N, 0, device, WORKERS)
        theirs = DataLoader(
            Photographs(paths), case.N, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True,
            pin_memory=case.device == "cuda",
        )  # fmt: skip
        recipes = [VIEW_RECIPES[RECIPE]] * VIEWS
        augmentation = Augmentation(recipes, SIZE, 0, mean=MEAN, deviation=DEVIATION, dtype=dtype, device=device)

        def ours() -> None:
            for batch in loader.epoch(0):
                augmentation(batch.pictures, batch.indices)
            synchronize(case.device)

        def torchvisions() -> None:
            for views in theirs:
                views.to(device, non_blocking=True)
            synchronize(case.device)

        measured = measure_rates(benchmark, case.images, ours, {"torchvision": torchvisions}, case.rounds, warm=1)
        loader.close()
    benchmark.extra_info.update({"kind": "streaming", "size": SIZE, **case._asdict(), **measured})

"""Images a second of whole training steps: ours against a step like the authors', and where a step's time goes.

In every round both run one after the other. On a GPU ours is captured, in bfloat16, and the profiler tells how long the
GPU idles; it is compared with ours in eager as well.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from dogo_fast.data import Batch
from dogo_fast.peers import build_peer
from dogo_fast.training.objectives import Objective
from dogo_fast.training.optimisers import build_optimiser
from dogo_fast.training.step import StepSettings, TrainingStep
from dogo_fast.views import VIEW_RECIPES, Augmentation

from .per_kernel import gpu_events
from .rivals import DEVIATION, MEAN, AuthorsStep, torchvision_views
from .timing import quartiles, seconds, synchronize, times_as_long

SIZE = 32


class StepCase(NamedTuple):
    """Two peers of one backbone on batches of N images of 32 px; bfloat16 on a GPU, float32 on a CPU."""

    device: str
    backbone: str
    N: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.device}-{self.backbone}-N{self.N}"


def cases(grid: str) -> Iterable[StepCase]:
    if grid == "smoke":
        return [StepCase("cpu", "small", 8, 2), StepCase("cuda", "small", 8, 2)]
    first = [StepCase("cpu", "small", 128, 7), StepCase("cuda", "resnet18", 512, 7)]
    if grid == "check":
        return first
    return [*first, StepCase("cpu", "resnet18", 32, 5), StepCase("cuda", "resnet18", 1024, 7)]


def build(name: str, images: torch.Tensor, N: int) -> TrainingStep:
    device = images.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    peers = [build_peer(name, SIZE, 0, number).to(device).train() for number in (1, 2)]
    optimisers = [
        build_optimiser("adam", peer.parameters(), learning_rate=1e-3, weight_decay=0.0, momentum=0.9, device=device)
        for peer in peers
    ]
    recipes = [VIEW_RECIPES["cifar"]] * 4
    augmentation = Augmentation(recipes, (SIZE, SIZE), 0, mean=MEAN, deviation=DEVIATION, dtype=dtype, device=device)
    objective = Objective(("simclr", "simclr"), (1.0, 1.0), 0.5, 0.1)
    return TrainingStep(peers, optimisers, objective, augmentation, images, N, StepSettings(dtype))


def time_phases(step: TrainingStep) -> dict[str, float]:
    """Seconds of each part of an eager step, with a wait for the device after each."""
    result: dict[str, float] = {}
    made: dict[str, Any] = {}

    def timed(name: str, function: Callable[[], Any]) -> None:
        def run() -> None:
            made[name] = function()
            synchronize(step.device.type)

        result[name] = seconds(run)

    for optimiser in step.optimisers:
        optimiser.zero_grad(set_to_none=True)
    synchronize(step.device.type)
    timed("augmentation", lambda: step.augmentation(step.images, step.rows, step.indices))
    timed("forward", lambda: step._forward(made["augmentation"]))
    timed("loss", lambda: step.objective(made["forward"]))
    timed("backward", lambda: made["loss"][0].backward())
    timed("optimisers", lambda: [step._update(*pair) for pair in zip(step.peers, step.optimisers, strict=True)])
    return result


def idle_share(run: Callable[[], None], rounds: int) -> float | None:
    """Share of the time from the first to the last kernel of some steps in which no kernel or copy ran; None where the
    profiler sees none."""
    events = gpu_events(lambda: [run() for _ in range(rounds)])
    if not events:
        return None
    busy, end = 0.0, events[0].start
    for _, start, stop in events:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - events[0].start)


def test_step(benchmark: Any, case: StepCase) -> None:
    device, name, N, rounds = case
    where = torch.device(device)
    images = torch.randint(0, 256, (4 * N, 3, SIZE, SIZE), dtype=torch.uint8)
    step = build(name, images.to(where), N)
    rows = torch.randperm(4 * N, device=where)[:N]
    batch = Batch(step.images, rows, rows, N)
    theirs = AuthorsStep(
        [build_peer(name, SIZE, 0, number).to(where).train() for number in (1, 2)],
        torchvision_views(VIEW_RECIPES["cifar"], SIZE),
        where,
    )
    times: dict[str, list[float]] = {"ours": [], "authors": []}
    phases: list[dict[str, float]] = []
    if device == "cuda":
        times["eager"] = []
        assert step.capture(batch)
    graph = step.graph

    def make_step() -> None:
        step(batch, (1e-3, 1e-3))
        synchronize(device)

    def run() -> None:
        step.graph = graph
        times["ours"].append(seconds(make_step))

    def run_others() -> None:
        times["authors"].append(seconds(lambda: (theirs(images[:N]), synchronize(device))))
        step.graph = None
        if device == "cuda":
            times["eager"].append(seconds(make_step))
        phases.append(time_phases(step))

    for _ in range(2):
        run_others()
        run()
    phases.clear()
    for values in times.values():
        values.clear()
    benchmark.pedantic(run, setup=run_others, rounds=rounds, iterations=1)
    whole = [sum(parts.values()) for parts in phases]
    info: dict[str, Any] = {
        "kind": "step",
        **case._asdict(),
        "per_second": {key: quartiles([N / value for value in values]) for key, values in times.items()},
        "faster_than": times_as_long(times),
        "phase_shares": {
            key: quartiles([parts[key] / total for parts, total in zip(phases, whole, strict=True)])
            for key in phases[0]
        },
    }
    if device == "cuda":
        step.graph = graph
        info["gpu_idle_share"] = idle_share(lambda: step(batch, (1e-3, 1e-3)), 20)
    benchmark.extra_info.update(info)

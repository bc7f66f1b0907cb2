"""Images a second of whole training steps: ours against a step like the authors', and where a step's time goes.

In every round both run one after the other. On a GPU ours is captured, in bfloat16, and the profiler tells how long the
GPU idles; it is compared with ours in eager as well.
"""

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import quartiles, seconds
from rivals import DEVIATION, MEAN, AuthorsStep, torchvision_views

from dogo_fast.augment import VIEW_RECIPES, Augmentation
from dogo_fast.data import Batch
from dogo_fast.peers import build_peer
from dogo_fast.training.objectives import Objective
from dogo_fast.training.optimisers import build_optimiser
from dogo_fast.training.step import StepSettings, TrainingStep

SIZE = 32
CASES = [("cpu", "small", 128, 7), ("cpu", "resnet18", 32, 5)]
if torch.cuda.is_available():
    CASES += [("cuda", "resnet18", 512, 20), ("cuda", "resnet18", 1024, 20)]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


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
            synchronize(step.device)

        result[name] = seconds(run)

    for optimiser in step.optimisers:
        optimiser.zero_grad(set_to_none=True)
    synchronize(step.device)
    timed("augmentation", lambda: step.augmentation(step.images, step.rows, step.indices))
    timed("forward", lambda: step._forward(made["augmentation"]))
    timed("loss", lambda: step.objective(made["forward"]))
    timed("backward", lambda: made["loss"][0].backward())
    timed("optimisers", lambda: [step._update(*pair) for pair in zip(step.peers, step.optimisers, strict=True)])
    return result


def idle_share(run: Callable[[], None], rounds: int) -> float:
    """Share of the time from the first to the last kernel of some steps in which no kernel or copy ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(rounds):
            run()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - spans[0][0])


@pytest.mark.parametrize(("device", "name", "N", "rounds"), CASES)
def test_step(benchmark: Any, device: str, name: str, N: int, rounds: int) -> None:
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
        synchronize(where)

    def run() -> None:
        step.graph = graph
        times["ours"].append(seconds(make_step))

    def run_others() -> None:
        times["authors"].append(seconds(lambda: (theirs(images[:N]), synchronize(where))))
        step.graph = None
        if device == "cuda":
            times["eager"].append(seconds(make_step))
        phases.append(time_phases(step))

    for _ in range(2):
        run_others()
        run()
    for values in (*times.values(), phases):
        values.clear()
    benchmark.pedantic(run, setup=run_others, rounds=rounds, iterations=1)
    whole = [sum(parts.values()) for parts in phases]
    info: dict[str, Any] = {
        "kind": "step",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "case": f"two {name}, {SIZE} px, batch {N}, {'bfloat16' if device == 'cuda' else 'float32'}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "per_second": {key: quartiles([N / value for value in values]) for key, values in times.items()},
        "faster_than": {
            key: quartiles([other / own for other, own in zip(values, times["ours"], strict=True)])
            for key, values in times.items()
            if key != "ours"
        },
        "phase_shares": {
            key: quartiles([parts[key] / total for parts, total in zip(phases, whole, strict=True)])
            for key in phases[0]
        },
    }
    if device == "cuda":
        step.graph = graph
        info["gpu_idle_share"] = idle_share(lambda: step(batch, (1e-3, 1e-3)), 20)
    benchmark.extra_info.update(info)

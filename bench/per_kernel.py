"""Each of our kernels in a pass on a GPU: its time, and the least time of the work that is needed of it.

The profiler gives the time of every launch on the GPU. In one more pass the launches are listened to, for what they
move. Passes run in eager: a captured one has the same kernels.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dogo_fast.ops import launches as launching
from dogo_fast.ops.compiling import KernelCase
from dogo_fast.ops.launches import Launch

from .timing import quartiles
from .work import Shape, bound

PASSES = {"statistics_kernel": "forward", "gradient_kernel": "backward"}
"""What the kernels of tiles compute, each alone; all others only move their tensors."""


class Event(NamedTuple):
    """A kernel or a copy on the GPU; seconds."""

    name: str
    start: float
    end: float


class Incomplete(Exception):
    """The profiler did not see every launch, or there was none."""


def measure(passes: Sequence[Callable[[], Any]], case: KernelCase, rates: Mapping[str, float]) -> dict[str, Any]:
    """What a record has of the kernels in passes that are alike, or why it has nothing.

    Args:
        passes: each runs once, profiled; the last once more before.
        case: as the static roofline names it.
        rates: of the machine, from ``machine.rates``.
    """
    rates = {"gemm": rates[case.dtype], "exp2": rates["exp2"], "copy": rates["copy"]}
    about = {"case": dataclasses.asdict(case)}
    try:
        with launching.recorded() as launches:
            passes[-1]()
        events = gpu_events(lambda: [run() for run in passes])
        times = seconds_by_kernel(events, Counter(each.name for each in launches), len(passes))
    except Exception as error:  # CUPTI may be missing, forbidden or in another profiler's hands
        return about | {"unavailable": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    device = next(value.device for value in launches[0].values.values() if isinstance(value, Tensor))
    return about | {
        "passes": len(passes),
        "rates": rates,
        "multiprocessors": launching.device_of(device).multiprocessors,
        "kernels": [join(name, launches, seconds, case, rates) for name, seconds in times.items()],
    }


def gpu_events(run: Callable[[], Any]) -> list[Event]:
    """Everything that ran on the GPU in a call, in order; nothing where the profiler cannot look into it."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    found = [
        Event(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profile.events()
        if event.device_type == torch.profiler.DeviceType.CUDA
    ]
    return sorted(found, key=lambda event: event.start)


def seconds_by_kernel(events: Iterable[Event], launches: Mapping[str, int], passes: int) -> dict[str, list[float]]:
    """Of each kernel, its seconds in every pass. ``events``: in order; ``launches``: of each kernel in a pass.

    Raises:
        Incomplete: more or fewer launches than the passes have, or none at all.
    """
    if not launches:
        raise Incomplete("a pass launches no kernel of ours")
    times: dict[str, list[float]] = {name: [] for name in launches}
    for event in events:
        if event.name in times:
            times[event.name].append(event.end - event.start)
    for name, count in launches.items():
        if len(times[name]) != count * passes:
            raise Incomplete(f"the profiler gave {len(times[name])} of {count * passes} launches of {name}")
    return {
        name: [sum(times[name][first : first + count]) for first in range(0, count * passes, count)]
        for name, count in launches.items()
    }


def join(
    name: str, launches: Iterable[Launch], seconds: Sequence[float], case: KernelCase, rates: Mapping[str, float]
) -> dict[str, Any]:
    """A kernel's seconds in each pass beside its bound: the least seconds, by what may limit it, of the work that is
    needed of a kernel of tiles, or of moving the tensors of another, each once."""
    own = [each for each in launches if each.name == name]
    if name in PASSES:
        least = bound(shape_of(own[0], case), rates, (PASSES[name],))
    else:
        least = {"memory": sum(map(moved, own)) / rates["copy"]}
    return {
        "kernel": name,
        "tile": own[0].tile,
        "warps": own[0].switches["num_warps"],
        "programs": sum(each.programs for each in own),
        "seconds": quartiles(seconds),
        "bound": least,
    }


def shape_of(launch: Launch, case: KernelCase) -> Shape:
    """Of the loss that a launch of a kernel of tiles belongs to."""
    teacher = case.loss == "similarity_kl" and launch.values.get("PEER_2") == "teacher"
    return Shape(case.loss, case.N, case.D, getattr(torch, case.dtype).itemsize, teacher)


def moved(launch: Launch) -> int:
    """Bytes of a launch's tensors, as if each were read or written once. Of pictures only those count that views are
    made of; what is scratch to a launch does not."""
    sizes: dict[int, int] = {}
    for name, value in launch.values.items():
        if name == "p_pixels":
            sizes[id(value)] = 3 * int(launch.values["p_places"][:, 1:].prod(dim=1).sum())
        elif isinstance(value, Tensor) and "scratch" not in name:
            sizes[id(value)] = value.nbytes
    return sum(sizes.values())

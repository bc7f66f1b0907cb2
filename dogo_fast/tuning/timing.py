"""Timing tiles on a GPU: a CUDA graph of several passes for each, replayed in turn between two events."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from dogo_fast import measuring
from dogo_fast.kernels.configurations import Configuration
from dogo_fast.measuring import captured, seconds_on_gpu
from dogo_fast.ops import core, tile_tables
from dogo_fast.ops.launches import device_of
from dogo_fast.ops.library import DOGO_LOSS
from dogo_fast.ops.problem import VALUES
from dogo_fast.tuning.search import Run, TunedSize

GRAPH_SECONDS = 2e-3
"""What a graph should take: long beside the events' resolution of half a microsecond and the launch of the graph."""
MOST_PASSES = 64
SETTINGS = (None, 0.5, None, 0.1, 1.0, 1.0, "batchmean", "float32", "triton")
"""Of the operator: the authors' temperatures as numbers, gradients in float32 sums."""

Result = TypeVar("Result")


class GraphTimer:
    """``tuning.search.Time`` on the present CUDA device.

    The statistics kernel's time is that of the whole forward pass, since its tile decides how many partial sums the
    kernel after it merges; the gradient kernel's that of the whole backward pass.
    """

    def __call__(self, size: TunedSize, kernel: str, tried: Sequence[Configuration], rounds: int) -> list[Run]:
        run = _or_why(lambda: _pass_of(size, kernel, tried[0]))
        if isinstance(run, str):
            return [Run(failure=run)] * len(tried)
        graphs = [_or_why(functools.partial(_capture, run, configuration)) for configuration in tried]
        times: list[list[float]] = [[] for _ in tried]
        for _ in range(rounds):
            for place, graph in enumerate(graphs):
                if isinstance(graph, str):
                    continue
                seconds = _or_why(functools.partial(_replay, *graph))
                if isinstance(seconds, str):
                    graphs[place] = seconds
                else:
                    times[place].append(seconds)
        return [
            Run(failure=graph) if isinstance(graph, str) else Run(seconds)
            for graph, seconds in zip(graphs, times, strict=True)
        ]


def _or_why(call: Callable[[], Result]) -> Result | str:
    """What it returns; or, if it fails, why."""
    try:
        return call()
    except Exception as error:  # Triton's compiler or OutOfResources, too little memory, the driver's refusal
        said = (str(error).strip().splitlines() or [""])[0]
        return f"cannot be run: {type(error).__name__} {said[:200]}"


def _pass_of(size: TunedSize, kernel: str, default: Configuration) -> Callable[[], Any]:
    """The pass of a kernel; the backward pass is of what a forward pass with the default left."""
    source = torch.Generator("cuda").manual_seed(0)
    dtype = getattr(torch, size.dtype)
    shape = (size.rows, size.columns)
    views = [torch.randn(shape, generator=source, device="cuda").to(dtype) for _ in range(4)]
    if kernel == "statistics":
        return lambda: core.forward(DOGO_LOSS, *views, *SETTINGS)
    with tile_tables.forced(default):  # the user's own tiles may be those that fail
        saved = core.forward(DOGO_LOSS, *views, *SETTINGS)[len(VALUES) :]
    upstream: list[Tensor | None] = [torch.ones((), device="cuda"), *[None] * (len(VALUES) - 1)]
    return lambda: core.backward(DOGO_LOSS, *upstream, *saved, *views, *SETTINGS)


def _capture(run: Callable[[], Any], configuration: Configuration) -> tuple[Callable[[], None], int]:
    """A graph of several passes, and how many are in it."""
    with tile_tables.forced(configuration):
        run()  # compiles
        passes = max(1, min(MOST_PASSES, round(GRAPH_SECONDS / max(seconds_on_gpu([run]), 1e-6))))
        replay = captured(lambda: [run() for _ in range(passes)])
    replay()
    torch.cuda.synchronize()
    return replay, passes


def _replay(graph: Callable[[], None], passes: int) -> float:
    return seconds_on_gpu([graph]) / passes


def present_architecture() -> str:
    """Of the present CUDA device, as the tables name it."""
    return device_of(torch.device("cuda", torch.cuda.current_device())).architecture


def multiprocessors() -> int:
    """Of the present CUDA device."""
    return device_of(torch.device("cuda", torch.cuda.current_device())).multiprocessors


def shared_limit() -> int:
    """Bytes of shared memory that a program may have on the present device."""
    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(properties.shared_memory_per_block_optin)


def about_the_machine() -> dict[str, str]:
    """What a tuned entry says of where it was tuned."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": measuring.driver() or f"for CUDA {torch.version.cuda}",
        "torch": str(torch.__version__),
        "triton": str(measuring.version("triton")),
    }

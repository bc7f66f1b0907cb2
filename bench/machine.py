"""The machine a benchmark runs on: what it is, and the rates it reaches in the same run."""

import functools
import os
import platform
from collections.abc import Callable
from typing import Any

import torch

from dogo_fast import __version__, measuring
from dogo_fast.measuring import seconds_on_gpu
from dogo_fast.ops import extension
from dogo_fast.ops.launches import device_of

from .timing import seconds

PACKAGES = ("torch", "triton", "numpy", "torchvision", "kornia", "lightly", "pytorch-metric-learning")


@functools.cache
def describe() -> dict[str, Any]:
    """Versions, threads and, where there is one, the GPU and its driver."""
    found: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found["versions"] = {name: version for name in PACKAGES if (version := measuring.version(name)) is not None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "architecture": device_of(torch.device("cuda")).architecture,
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2_cache": properties.L2_cache_size,
            "driver": measuring.driver(),
            "cuda": torch.version.cuda,
        }
    return found


@functools.cache
def commit() -> dict[str, Any]:
    """Of the checkout; without one, the version of the installed package."""
    return measuring.commit() or {"id": f"dogo_fast {__version__}", "time": "", "dirty": False}


@functools.cache
def rates(device: str) -> dict[str, float]:
    """A second, measured once a run, by kind of work: "float32", "bfloat16" and, on a GPU, "float16" FLOP of matrix
    products, "exp2" exponentials, "copy" bytes read and written. On a CPU on all of torch's threads; exponentials are
    those of csrc/exp2.h within the caches, or on a GPU of a kernel that does nothing else, in registers."""
    on_gpu = device == "cuda"

    def best(call: Callable[[], Any], times: int) -> float:
        return min(seconds_on_gpu([call]) if on_gpu else seconds(call) for _ in range(times))

    found = {}
    side = 8192 if on_gpu else 1536
    for dtype in (torch.float32, torch.bfloat16, *([torch.float16] if on_gpu else [])):
        a, b = torch.randn(2, side, side, device=device, dtype=dtype)
        multiply = functools.partial(torch.mm, a, b, out=torch.empty_like(a))
        found[str(dtype).removeprefix("torch.")] = 2 * side**3 / best(multiply, 30 if on_gpu else 15)
    if on_gpu:
        from .exponentials import COUNT, launch

        out = torch.empty(2**20, device=device)
        found["exp2"] = COUNT * out.numel() / best(lambda: launch(out), 30)
    else:
        extension.load()
        x = -torch.rand(2**18)
        found["exp2"] = x.numel() / best(lambda: torch.ops.dogo_fast_cpp.exp2_(x), 50)
    big, copied = torch.zeros(2, 2**28 if on_gpu else 2**26, device=device)
    found["copy"] = 2 * big.nbytes / best(lambda: copied.copy_(big), 30 if on_gpu else 5)
    return found

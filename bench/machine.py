"""The machine a benchmark runs on: what it is, and the rates it reaches in the same run."""

import functools
import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dogo_fast import __version__
from dogo_fast.ops import extension

from .timing import seconds

PACKAGES = ("torch", "triton", "numpy", "torchvision", "kornia", "lightly", "pytorch-metric-learning", "liger-kernel")


@functools.cache
def describe() -> dict[str, Any]:
    """Versions, threads and, where there is one, the GPU and its driver."""
    found: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found["versions"] = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    if torch.cuda.is_available():
        from dogo_fast.ops.launches import device_of

        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "architecture": device_of(torch.device("cuda")).architecture,
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2_cache": properties.L2_cache_size,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    return found


@functools.cache
def commit() -> dict[str, Any]:
    """Of the checkout that this suite lies in; without one, the version of the installed package."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        if (root / ".git").exists():
            name, time = git("log", "-1", "--format=%H %cI").split()
            return {"id": name, "time": time, "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"id": f"dogo_fast {__version__}", "time": "", "dirty": False}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def rates(device: str) -> dict[str, float]:
    """A second, by kind of work: "float32" and, on a GPU, "bfloat16" and "float16" FLOP of matrix products, "exp2"
    exponentials, "copy" bytes read and written."""
    return _rates_of_gpu() if device == "cuda" else _rates_of_cpu()


def _rates_of_cpu() -> dict[str, float]:
    """On all of torch's threads; exponentials are those of csrc/exp2.h, within the caches."""
    extension.load()
    a, b = torch.randn(2, 1536, 1536)
    out = torch.empty_like(a)
    x = -torch.rand(2**18)
    big, copied = torch.zeros(2, 2**26)
    return {
        "float32": 2 * 1536**3 / _best(lambda: torch.mm(a, b, out=out), 15),
        "exp2": x.numel() / _best(lambda: torch.ops.dogo_fast_cpp.exp2_(x), 50),
        "copy": 2 * big.nbytes / _best(lambda: copied.copy_(big), 5),
    }


def _best(call: Callable[[], Any], times: int) -> float:
    return min(seconds(call) for _ in range(times))


def _rates_of_gpu() -> dict[str, float]:
    found = {"exp2": _exponentials_of_gpu()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
        out = torch.empty_like(a)
        found[str(dtype).removeprefix("torch.")] = 2 * 8192**3 / _best_event(lambda: torch.mm(a, b, out=out))  # noqa: B023
    big, copied = torch.zeros(2, 2**28, device="cuda")
    found["copy"] = 2 * big.nbytes / _best_event(lambda: copied.copy_(big))
    return found


def _exponentials_of_gpu() -> float:
    """Of a kernel that does nothing but exponentials, in registers."""
    from .exponentials import COUNT, launch

    out = torch.empty(2**20, device="cuda")
    return COUNT * out.numel() / _best_event(lambda: launch(out))


def _best_event(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of thirty calls, by events."""
    best = float("inf")
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best
